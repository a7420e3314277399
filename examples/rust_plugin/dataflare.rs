//! `dataflare.h` in Rust: the structs, what a plugin calls, and the descriptor.
#![allow(dead_code)]

use std::ffi::{c_char, c_int, c_void};
use std::mem::size_of;

pub const SUCCESS: c_int = 0;
pub const FILTERED: c_int = 1;
pub const SKIP: c_int = 2;
pub const ERROR: c_int = 3;
pub const THREAD_SAFE: u32 = 1;
pub const MESSAGE_SIZE: usize = 256;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct View {
    data: *const u8,
    size: isize,
}

impl View {
    /// The bytes; none if there is nothing.
    pub fn bytes(&self) -> &[u8] {
        if self.data.is_null() || self.size == 0 {
            return &[];
        }
        // The engine's promise: `size` bytes, read-only until the call returns.
        unsafe { std::slice::from_raw_parts(self.data, self.size as usize) }
    }
}

#[repr(C)]
pub struct Record {
    pub value: View,
    pub key: View,
    pub timestamp: i64,
    pub offset: i64,
    pub partition: i32,
}

#[repr(C)]
pub struct Batch {
    length: isize,
    values: *const View,
    keys: *const View,
    timestamps: *const i64,
    offsets: *const i64,
    partitions: *const i32,
    block: View,
}

#[repr(C)]
pub struct Emitter {
    cursor: *mut u8,
    limit: *mut u8,
    reserved: isize,
    value: View,
    borrowed: c_int,
    grow: unsafe extern "C" fn(*mut Emitter, isize) -> c_int,
    fail: unsafe extern "C" fn(*mut Emitter, c_int, *const c_char),
}

impl Emitter {
    /// Copy bytes: they are the record's new value.
    pub fn emit(&mut self, bytes: &[u8]) -> c_int {
        let size = bytes.len() as isize;
        unsafe {
            if size > self.limit as isize - self.cursor as isize && (self.grow)(self, size) < 0 {
                return ERROR;
            }
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.cursor, bytes.len());
            self.value = View { data: self.cursor, size };
            self.cursor = self.cursor.add(bytes.len());
        }
        self.reserved = 0;
        SUCCESS
    }

    /// Part of the record's own value, without a copy, is its new value.
    pub fn forward(&mut self, part: &[u8]) -> c_int {
        self.value = View { data: part.as_ptr(), size: part.len() as isize };
        self.borrowed = 1;
        SUCCESS
    }

    /// Fail the record.
    pub fn fail(&mut self, code: c_int, message: &std::ffi::CStr) -> c_int {
        unsafe { (self.fail)(self, code, message.as_ptr()) };
        ERROR
    }
}

#[repr(C)]
pub struct Output {
    emitter: Emitter,
    position: isize,
    total: isize,
    length: isize,
    status: *mut u8,
    values: *mut View,
}

pub type Process = unsafe extern "C" fn(&Record, &mut Emitter, *mut c_void) -> c_int;

#[repr(C)]
pub struct Plugin {
    abi_version: u32,
    struct_size: u32,
    record_size: u32,
    batch_size: u32,
    emitter_size: u32,
    output_size: u32,
    flags: u32,
    reserved: u32,
    name: *const c_char,
    description: *const c_char,
    process: Process,
    process_batch: Option<unsafe extern "C" fn(*const Batch, *mut Output, *mut c_void) -> c_int>,
    init: Option<unsafe extern "C" fn(*mut *mut c_void, View, *mut c_char) -> c_int>,
    cleanup: Option<unsafe extern "C" fn(*mut c_void)>,
    state: *mut c_void,
}

unsafe impl Sync for Plugin {} // nothing of it is ever written

impl Plugin {
    /// A plugin without a state, which threads may share.
    pub const fn stateless(name: &'static std::ffi::CStr, process: Process) -> Plugin {
        Plugin {
            abi_version: 1,
            struct_size: size_of::<Plugin>() as u32,
            record_size: size_of::<Record>() as u32,
            batch_size: size_of::<Batch>() as u32,
            emitter_size: size_of::<Emitter>() as u32,
            output_size: size_of::<Output>() as u32,
            flags: THREAD_SAFE,
            reserved: 0,
            name: name.as_ptr(),
            description: std::ptr::null(),
            process,
            process_batch: None,
            init: None,
            cleanup: None,
            state: std::ptr::null_mut(),
        }
    }
}
