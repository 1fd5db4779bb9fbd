"""JUnit files of other runners: what is taken from them while they are written, and what is not."""

import os
from pathlib import Path
from typing import Any

import pytest

from sojourn.record.junit import FILE_BYTES_MAX, JunitFiles, JunitParser

GRADLE = """<?xml version="1.0" encoding="UTF-8"?>
<testsuite name="org.shop.CartTest" tests="4" skipped="1" failures="1" errors="1" time="1.2">
  <properties/>
  <testcase name="adds()" classname="org.shop.CartTest" time="0.012"/>
  <testcase name="removes()" classname="org.shop.CartTest" time="1,234.5">
    <failure message="expected: &lt;1&gt; but was: &lt;2&gt;" type="AssertionFailedError">at Cart.remove(Cart.java:7)
at CartTest.removes(CartTest.java:21)</failure>
  </testcase>
  <testcase name="pays()" classname="org.shop.CartTest" time="0.1"><error type="NullPointerException">boom
at Pay</error></testcase>
  <testcase name="later()" classname="org.shop.CartTest" time="0"><skipped message="not yet"/></testcase>
  <system-out><![CDATA[<testcase name="no case at all"/>]]></system-out>
</testsuite>
"""


def suite(*cases: str, closed: bool = True) -> str:
    return "<testsuites><testsuite>" + "".join(cases) + ("</testsuite></testsuites>\n" if closed else "")


def case(name: str, inner: str = "", classname: str = "C") -> str:
    return f'<testcase classname="{classname}" name="{name}" time="0.5">{inner}</testcase>'


class Folder:
    """A folder whose XML files are watched."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = self.watched()

    def watched(self) -> JunitFiles:
        return JunitFiles([f"{self.path}/**/*.xml"])

    def write(self, name: str, text: str) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def append(self, name: str, text: str) -> None:
        with (self.path / name).open("a") as file:
            file.write(text)

    def look(self) -> list[tuple[str, str]]:
        return pairs(self.files.look())

    def finish(self) -> tuple[list[tuple[str, str]], list[str]]:
        commands, said = self.files.finish()
        return pairs(commands), said


def pairs(commands: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(command["case_id"], command["outcome"]) for command in commands]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_each_case_becomes_a_result_with_what_its_element_says(folder: Folder) -> None:
    folder.write("build/TEST-cart.xml", GRADLE)
    adds, removes, pays, later = folder.files.look()
    assert adds == {
        "type": "result.record",
        "case_id": "org.shop.CartTest.adds()",
        "outcome": "passed",
        "duration_s": 0.012,
    }
    assert (removes["outcome"], removes["message"]) == ("failed", "expected: <1> but was: <2>")
    assert removes["details"].endswith("CartTest.java:21)")
    assert removes["duration_s"] == 1234.5
    assert (pays["outcome"], pays["message"], pays["details"]) == ("error", "boom", "boom\nat Pay")
    assert (later["outcome"], later["message"]) == ("skipped", "not yet")
    assert folder.finish() == ([], [])


def test_a_file_that_grows_gives_each_case_as_it_ends_and_once(folder: Folder) -> None:
    text = suite(case("a"), case("b", "<failure>no</failure>"), case("c"))
    folder.write("r.xml", "")
    seen = []
    for start in range(0, len(text), 7):
        folder.append("r.xml", text[start : start + 7])
        seen += folder.look()
        assert len(seen) == text[: start + 7].count("</testcase>")
    assert seen == [("C.a", "passed"), ("C.b", "failed"), ("C.c", "passed")]
    assert folder.finish() == ([], [])


def test_a_file_that_is_written_anew_with_more_gives_only_what_is_new(folder: Folder) -> None:
    folder.write("r.xml", suite(case("a"), case("b")))
    assert folder.look() == [("C.a", "passed"), ("C.b", "passed")]
    folder.write("r.xml", suite(case("first"), case("a"), case("b", "<error/>")))
    assert folder.look() == [("C.first", "passed"), ("C.b", "error")]
    os.replace(folder.write("new", suite(case("a"), case("z"))), folder.path / "r.xml")
    assert folder.look() == [("C.z", "passed")]


def test_a_longer_document_over_a_finished_one_is_read_from_its_beginning(folder: Folder) -> None:
    short = suite(case("a"))
    folder.write("r.xml", short)
    assert folder.look() == [("C.a", "passed")]
    # The bytes before where the reading stopped are the same, and what follows is no part of that document.
    folder.write("r.xml", short + suite(case("b")))
    assert folder.look() == []
    assert "junk after document element" in folder.finish()[1][0]
    folder.write("r.xml", suite(case("b"), case("a")))
    assert folder.look() == [("C.b", "passed")]


def test_what_lay_there_before_is_left_alone_until_it_is_written(tmp_path: Path) -> None:
    before = Folder(tmp_path)
    before.write("old.xml", suite(case("old")))
    before.write("again.xml", suite(case("again")))
    folder = Folder(tmp_path)
    assert folder.look() == []
    folder.write("again.xml", suite(case("again"), case("more")))
    assert folder.look() == [("C.again", "passed"), ("C.more", "passed")]
    assert folder.finish() == ([], [])


def test_a_case_that_comes_again_gets_a_number(folder: Folder) -> None:
    folder.write("a.xml", suite(case("same"), case("same", "<failure/>")))
    folder.write("b.xml", suite(case("same")))
    assert folder.look() == [("C.same", "passed"), ("C.same#2", "failed"), ("C.same#3", "passed")]
    folder.append("b.xml", "\n")
    assert folder.look() == []


@pytest.mark.parametrize(
    ("text", "taken", "why"),
    [
        (suite(case("a"), closed=False), ["C.a"], "ends in the middle"),
        (suite(case("a"), '<testcase name="half', closed=False), ["C.a"], "ends in the middle"),
        (suite(case("a"), "<oops></testcase>", case("b")), ["C.a"], "mismatched tag"),
        ("no xml at all", [], "syntax error"),
        ("", [], "ends in the middle"),
        (suite(case("a"), "&undefined;", case("b")), ["C.a"], "undefined entity"),
        (f'<!DOCTYPE x [<!ENTITY e "ha">]>{suite(case("a"))}', [], "document type declaration"),
        (f'<!DOCTYPE x SYSTEM "file:///etc/passwd">{suite(case("a"))}', [], "document type declaration"),
    ],
)
def test_of_a_broken_file_is_taken_what_can_be_read_and_the_rest_is_said(
    folder: Folder, text: str, taken: list[str], why: str
) -> None:
    path = folder.write("r.xml", text)
    cases, (said,) = folder.finish()
    assert [case_id for case_id, _ in cases] == taken
    assert str(path) in said
    assert why in said
    assert f"{len(taken)} cases were taken" in said


def test_a_billion_laughs_are_not_laughed(folder: Folder) -> None:
    entities = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    folder.write("r.xml", f'<!DOCTYPE x [<!ENTITY l0 "ha">{entities}]><x>&l9;</x>')
    assert "refused" in folder.finish()[1][0]


def test_a_file_beyond_its_limit_is_read_up_to_there(folder: Folder) -> None:
    path = folder.write("r.xml", suite(case("a"), closed=False) + " ")
    os.truncate(path, FILE_BYTES_MAX + 1)  # zeros, which are no XML
    assert folder.look() == [("C.a", "passed")]
    with path.open("wb") as file:
        file.write(suite(case("b"), closed=False).encode())
        for _ in range(FILE_BYTES_MAX // 2**20 + 1):
            file.write(b" " * 2**20)
        file.write(case("beyond").encode())
    cases, (said,) = folder.finish()
    assert cases == [("C.b", "passed")]
    assert "longer than" in said


def test_what_is_no_file_is_passed_over(folder: Folder) -> None:
    (folder.path / "folder.xml").mkdir()
    os.mkfifo(folder.path / "pipe.xml")
    (folder.path / "dangling.xml").symlink_to("nowhere")
    assert folder.look() == []
    assert "was written" in folder.finish()[1][0]


def test_details_and_ids_keep_the_wires_limits(folder: Folder) -> None:
    folder.write(
        "r.xml", suite(case("ü" * 2_000, f'<failure message="{"m" * 9_000}">{"d" * 200_000}</failure>'))
    )
    (command,) = folder.files.look()
    assert len(command["case_id"].encode()) <= 1_024
    assert len(command["message"].encode()) <= 4 * 1_024
    assert len(command["details"].encode()) <= 64 * 1_024


@pytest.mark.parametrize(
    ("attributes", "inner", "outcome"),
    [
        ("", "<failure/><error/>", "error"),
        ("", "<error/><failure/>", "error"),
        ("", "<flakyFailure>once</flakyFailure>", "passed"),
        ("", '<skipped type="pytest.xfail" message="known"/>', "xfailed"),
        ('status="notrun"', "", "skipped"),
        ('time="nan"', "", "passed"),
        ('time="-1"', "<system-out>&lt;failure/&gt;</system-out>", "passed"),
        ("", "<properties><error/></properties>", "passed"),
    ],
)
def test_outcomes_of_other_runners(attributes: str, inner: str, outcome: str) -> None:
    parser = JunitParser()
    (found,) = parser.feed(f'<t><testcase name="n" {attributes}>{inner}</testcase></t>'.encode())
    assert (found.case_id, found.outcome, found.duration_s) == ("n", outcome, 0.0)
    assert parser.finished


def test_documents_in_other_encodings_are_read(folder: Folder) -> None:
    (folder.path / "r.xml").write_text(
        f'<?xml version="1.0" encoding="UTF-16"?>{suite(case("é"))}', encoding="utf-16"
    )
    assert folder.look() == [("C.é", "passed")]
