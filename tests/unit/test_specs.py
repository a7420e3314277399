"""How plugins are written, and what is found so."""

import sys
import threading
from pathlib import Path

import pytest
from helpers import run_threads

import dataflare
from dataflare import catalogue, discovery, places, specs
from dataflare.errors import PluginConfigurationError


def install(site: Path, package: str, text: str) -> None:
    """A package with a list of entry points."""
    info = site / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[dataflare.plugins]\n{text}")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for packages."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.mark.parametrize(
    ("spec", "arguments"),
    [
        ("contains:a:b", (b"a:b",)),
        ("contains:", (b"",)),
        (r"replace:a\:b\\c\d:e:f", (b"a:b\\c\\d", b"e:f")),
        ("json-field:a", ("a",)),
        ("upper", ()),
    ],
)
def test_arguments_of_plugins_of_the_library(spec: str, arguments: tuple[object, ...]) -> None:
    """Bytes, but for the name of a field; the last one is taken as it stands."""
    recipe = specs.find_source(spec)
    assert recipe.arguments == arguments
    assert isinstance(recipe(), dataflare.DataFlarePlugin)


def test_options_of_plugins_of_the_library() -> None:
    """Whole numbers, or text."""
    assert specs.find_source("regex,group=1:(x)").options == {"group": 1}
    assert specs.find_source("regex,group=n:(?P<n>x)").options == {"group": "n"}
    for spec in ("regex,flags=2:x", "upper,x=1", "replace:a", "contains"):
        with pytest.raises(PluginConfigurationError, match="it is written"):
            specs.find_source(spec)
    with pytest.raises(PluginConfigurationError, match=r"^upper takes no argument$"):
        specs.find_source("upper:")


def test_what_a_callable_takes_is_read_from_its_parameters() -> None:
    """Annotations may be text, and unions; what cannot be looked into takes anything."""

    def make(
        first: bytes, second: "int | None", third, /, flag: bool, *rest: int,
        share: float | None = 0.5, word="", must: str, **more: object,
    ) -> dict[str, object]:  # fmt: skip
        return {key: value for key, value in locals().items() if key not in ("rest", "more")}

    form = specs.named("made", make)
    assert form.form == ("made[,share=SHARE][,word=WORD],must=MUST:FIRST:SECOND:THIRD:FLAG")
    recipe = form.source(["share=2", "word=7", "must=8"], "a:-3:c:false")
    assert recipe() == {
        "first": b"a",
        "second": -3,
        "third": "c",
        "flag": False,
        "share": 2.0,
        "word": 7,
        "must": "8",
    }
    for text, sentence in {
        "a:x:c:true": "SECOND is a whole number, not 'x'",
        "a:1:c:yes": "FLAG is true or false, not 'yes'",
    }.items():
        with pytest.raises(PluginConfigurationError, match=sentence):
            form.source(["must=1"], text)
    with pytest.raises(PluginConfigurationError, match=r"it is written made.*,must=MUST:FIRST"):
        form.source(["share=2"], "a:1:c:true")

    class Plain(dataflare.DataFlarePlugin):
        """A class on a compiled base, which has no signature."""

    assert specs.named("plain", Plain).form == "plain"
    unknown = specs.named("unknown", dict)
    assert unknown.form == "unknown[:ARGUMENT]"
    assert unknown.source(["a=b"], "c:d").arguments == ("c:d",)
    assert unknown.source([], None).arguments == ()


def test_installed_packages_are_read(site: Path) -> None:
    """Their names, places and conflicts; none is imported."""
    install(site, "one", "a = nowhere:A\nboth = nowhere:B [extra]\nupper = nowhere:C\n")
    install(site, "two", "both = elsewhere:B\nno dots. = x:y\n")
    found = discovery.read_installed()
    assert found.find("a") == discovery.InstalledPlugin("a", "one", "1.0", "nowhere:A")
    assert found.find("c") is None
    with pytest.raises(PluginConfigurationError, match=r"one 1\.0 \(nowhere:B\) and two 1\.0"):
        found.find("both")
    assert discovery.read_installed("a").plugins == (found.find("a"),)
    with pytest.raises(PluginConfigurationError, match=r"one 1\.0 is broken: .*nowhere"):
        specs.find_source("a")
    with pytest.raises(PluginConfigurationError, match="there is no plugin 'c'"):
        specs.find_source("c")


def test_a_list_that_cannot_be_read_hides_no_other(site: Path) -> None:
    """Of it alone there is a sentence, unless it has nothing of ours."""
    install(site, "good", "a = json:dumps\n")
    install(site, "garbled", "what\n")
    install(site, "foreign", "")
    (site / "foreign-1.0.dist-info" / "entry_points.txt").write_text("[scripts]\nwhat\n")
    found = discovery.read_installed()
    assert found.find("a") is not None
    [sentence] = found.unreadable
    assert sentence.startswith("the entry points of garbled 1.0 cannot be read: ")


SIZE_CHANGED = (
    "dataflare._compiled.plugin.NativePluginABI1 size changed, may indicate binary "
    "incompatibility. Expected 40 from C header, got 56-56 from PyObject"
)
BUILD_AGAIN = (
    "it was built with another version of DataFlare, whose NativePluginABI1 has 40 bytes; that of "
    f"the DataFlare it runs with, {dataflare.__version__}, has 56: build the plugin again with the "
    "DataFlare it runs with"
)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SIZE_CHANGED, BUILD_AGAIN),
        ("numpy.ndarray" + SIZE_CHANGED[40:], "ValueError: numpy.ndarray"),
    ],
    ids=["ours", "another library's"],
)
def test_a_plugin_of_another_build(site: Path, error: str, reason: str) -> None:
    """As a module, by its name and as a file, our sentence takes the place of Cython's."""
    (site / "old_of_a_test.py").write_text(f"raise ValueError({error!r})\n")
    install(site, "olds", "old = old_of_a_test:Old\n")
    file = f"{site}/old_of_a_test.py"
    for spec, begin in {
        "old_of_a_test:Old": "the module 'old_of_a_test' cannot be loaded: ",
        "old": "the package olds 1.0 is broken: the module 'old_of_a_test' cannot be loaded: ",
        f"{file}:Old": f"loading {file} failed: ",
    }.items():
        with pytest.raises(PluginConfigurationError) as caught:
            specs.find_source(spec)
        assert str(caught.value).startswith(begin + reason)
        assert str(caught.value.__cause__) == error


def test_the_list_of_plugins(site: Path) -> None:
    """Of packages it says what is wrong; of the library all is known."""
    (site / "listed_of_a_test.py").write_text(
        "import dataflare\n"
        "from dataflare.plugins import Upper\n"
        "class Plain(dataflare.DataFlarePlugin):\n"
        "    '''Is plain.'''\n"
        "    def process(self, record):\n"
        "        return dataflare.PluginResult.skip()\n"
        "def loud() -> Upper:\n"
        "    '''Is loud.'''\n"
        "    return Upper()\n"
        "def sized(size: int) -> Upper:\n"
        "    return Upper()\n"
        "def obscure(size: int) -> 'Unknown':\n"
        "    return Upper()\n"
        "def quits():\n"
        "    raise SystemExit(0)\n"
    )
    install(
        site,
        "lists",
        "".join(
            f"{name} = listed_of_a_test:{name}\n"
            for name in ("Plain", "loud", "sized", "obscure", "quits", "missing", "Plain.no")
        )
        + "upper = listed_of_a_test:loud\nstrange = fractions:Fraction\nvalue = sys:path\n"
        "both = a:b\n",
    )
    install(site, "rivals", "both = c:d\n")
    plugins = catalogue.list_plugins().plugins
    listed = {plugin.name: plugin for plugin in plugins if plugin.package == "lists"}
    facts = {name: (plugin.kind, plugin.native) for name, plugin in listed.items()}
    assert facts["Plain"] == (dataflare.PluginType.CUSTOM, False)
    is_native = dataflare.backend == "cython"
    assert facts["loud"] == (dataflare.PluginType.TRANSFORMER, is_native)
    assert facts["sized"] == (None, is_native)
    assert facts["obscure"] == (None, None)
    assert listed["loud"].description.startswith("Upper-cases")
    problems = {name: plugin.problem for name, plugin in listed.items()}
    assert not any(map(problems.get, ("Plain", "loud", "sized", "obscure")))
    for name, words in {
        "quits": "SystemExit",
        "missing": "has no 'missing'",
        "Plain.no": "other characters",
        "upper": "comes first",
        "strange": "Fraction is no class of plugins",
        "value": "not list",
        "both": "is claimed by",
    }.items():
        assert words in problems[name]
    library = {plugin.name: plugin for plugin in plugins if plugin.package is None}
    assert library.keys() == specs.BUILTINS.keys()
    assert all(plugin.native is is_native for plugin in library.values())
    assert not any(plugin.problem for plugin in library.values())
    assert library["contains"].as_dict()["kind"] == "filter"


def test_a_file_is_loaded_once(tmp_path: Path) -> None:
    """Also when threads ask for it at the same time."""
    path = tmp_path / "slow.py"
    path.write_text(
        "import time\n"
        "time.sleep(0.05)\n"
        f"with open({str(tmp_path / 'loaded')!r}, 'a') as file:\n"
        "    file.write('x')\n"
        "class Inner:\n"
        "    value = object()\n"
    )
    found: list[object] = []
    run_threads(*[lambda: found.append(places.load_place(f"{path}:Inner.value"))] * 3)
    assert len(found) == 3
    assert len(set(found)) == 1
    assert (tmp_path / "loaded").read_text() == "x"


def test_a_file_that_fails_can_be_repaired(tmp_path: Path) -> None:
    """The next attempt loads it again."""
    path = tmp_path / "repaired.py"
    path.write_text("1 / 0")
    for _ in range(2):
        with pytest.raises(PluginConfigurationError, match="failed: ZeroDivisionError"):
            places.load_place(f"{path}:x")
    path.write_text("x = 'x, and more than before'\n")
    assert places.load_place(f"{path}:x").startswith("x")
    with pytest.raises(PluginConfigurationError, match="has no 'y'"):
        places.load_place(f"{path}:y")
    with pytest.raises(PluginConfigurationError, match="there is no file"):
        places.load_place(f"{path.with_name('none.py')}:x")


def test_no_two_files_are_taken_for_each_other(tmp_path: Path) -> None:
    """Whatever their names are; and a file is what its links lead to."""
    names = ["a.b/p", "a_b/p", "a%2Eb/p", "a__b/p", "a_.b/p"]
    for name in names:
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"x = {name!r}\nclass Class: pass\n")
    assert [places.load_place(f"{tmp_path}/{name}.py:x") for name in names] == names
    modules = [
        sys.modules[places.load_place(f"{tmp_path}/{name}.py:Class").__module__] for name in names
    ]
    assert [module.x for module in modules] == names
    assert not any("." in module.__name__ for module in modules)
    (tmp_path / "link.py").symlink_to("a.b/p.py")
    assert places.load_place(f"{tmp_path}/link.py:Class") is modules[0].Class
    (tmp_path / "real").write_text("x = 'real'")
    (tmp_path / "real.py").write_text("x = 'real.py'")
    (tmp_path / "other.py").symlink_to("real")
    assert places.load_place(f"{tmp_path}/other.py:x") == "real"
    assert places.load_place(f"{tmp_path}/real.py:x") == "real.py"


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """Half a module neither, when someone loses patience; the path of modules grows by one."""
    path = tmp_path / "impatient.py"
    before = [*sys.path]
    for failure in ("raise KeyboardInterrupt", "1 / 0", "raise SystemExit"):
        path.write_text(failure)
        with pytest.raises((PluginConfigurationError, KeyboardInterrupt)):
            places.load_place(f"{path}:x")
    path.write_text("x = 'at last, and long enough to be another file'")
    assert places.load_place(f"{path}:x").startswith("at last")
    assert sys.path == [*before, str(tmp_path)]


def test_a_file_that_loads_itself(tmp_path: Path) -> None:
    """Gets what it has so far, as by an import; so do two that load each other."""
    load = "from dataflare.places import load_place\nfirst = 1\n"
    path = tmp_path / "itself.py"
    path.write_text(f"{load}second = load_place({f'{path}:first'!r}) + 1\n")
    assert places.load_place(f"{path}:second") == 2

    paths = [tmp_path / "one.py", tmp_path / "other.py"]
    places.both_begun = threading.Barrier(2)
    for path, other in zip(paths, paths[::-1], strict=True):
        path.write_text(
            f"import dataflare.places\ndataflare.places.both_begun.wait(30)\n{load}"
            f"second = load_place({f'{other}:first'!r}) + 1\n"
        )
    found: list[object] = []
    run_threads(*[lambda p=path: found.append(places.load_place(f"{p}:second")) for path in paths])
    del places.both_begun
    assert found == [2, 2]


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300])
@pytest.mark.parametrize("kind", ["py", "pyx"])
def test_what_no_file_can_be_called(name: str, kind: str) -> None:
    """A sentence, and no error of another type."""
    if kind == "pyx" and dataflare.backend != "cython":
        pytest.skip("there are none")
    with pytest.raises(PluginConfigurationError):
        places.load_place(f"{name}.{kind}:x")


def test_no_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is named from there is not found."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(PluginConfigurationError, match=r"'x\.py' is not the path of a file"):
        places.load_place("x.py:x")
    (tmp_path / "there.py").write_text("x = 1")
    assert places.load_place(f"{tmp_path}/there.py:x") == 1


def test_an_entry_point_is_no_file(site: Path) -> None:
    """Also when its module is called so."""
    (site / "withpy").mkdir()
    (site / "withpy" / "__init__.py").touch()
    (site / "withpy" / "py.py").write_text("import dataflare\nx = dataflare.plugins.Upper\n")
    install(site, "withpy", "upperpy = withpy.py:x\n")
    assert specs.find_source("upperpy")() is not None
