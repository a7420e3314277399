//! Plugins in Rust: a function, and a plugin with a descriptor.

#![allow(non_upper_case_globals)]

mod dataflare;

use dataflare::{Emitter, Plugin, Record};
use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A panic must not leave Rust: it becomes the failure of the record.
fn guarded(out: &mut Emitter, work: impl FnOnce(&mut Emitter) -> c_int) -> c_int {
    match catch_unwind(AssertUnwindSafe(|| work(out))) {
        Ok(status) => status,
        Err(_) => out.fail(2, c"the plugin panicked"),
    }
}

/// The first word of a line; nothing is copied.
#[unsafe(no_mangle)]
pub extern "C" fn first_word(record: &Record, out: &mut Emitter, _state: *mut c_void) -> c_int {
    guarded(out, |out| {
        let line = record.value.bytes();
        match line.iter().position(|&byte| byte == b' ') {
            Some(end) => out.forward(&line[..end]),
            None => out.fail(1, c"the line has too few words"),
        }
    })
}

extern "C" fn title(record: &Record, out: &mut Emitter, _state: *mut c_void) -> c_int {
    guarded(out, |out| {
        let mut word = record.value.bytes().to_ascii_lowercase();
        word[0] = word[0].to_ascii_uppercase(); // panics if there is nothing
        out.emit(&word)
    })
}

#[unsafe(no_mangle)]
pub static title_plugin: Plugin = Plugin::stateless(c"title", title);
