"""How results look: exact text, and documents that a program can rely on."""

from __future__ import annotations

import json

import click
import pytest
import yaml

from overlaynet.cli import output
from overlaynet.cli.output import Column, member, table
from overlaynet.errors import LabFailed

pytestmark = pytest.mark.unit

ITEMS = [
    {"name": "node-1", "agent": {"pid": 7}, "ips": ["10.244.1.2", "10.244.1.3"], "up": True, "state": "ok"},
    {"name": "a-long-name", "agent": None, "ips": [], "up": False, "state": "missing"},
]
COLUMNS = (
    member("NAME", "name"),
    member("PID", "agent.pid"),
    member("IP", "ips"),
    member("UP", "up", wide=True),
    Column("STATE", lambda item: item["state"]),
)


def plain(text: str) -> str:
    return click.unstyle(text)


def test_table_is_aligned_with_numbers_to_the_right():
    assert plain(table(COLUMNS, ITEMS)) == (
        "NAME         PID  IP                     STATE\n"
        "node-1         7  10.244.1.2,10.244.1.3  ok\n"
        "a-long-name    -  -                      missing"
    )


def test_characters_of_two_cells_keep_the_columns_in_line():
    items = [{"name": "王小明", "n": 1}, {"name": "ann", "n": 12}]
    assert plain(table((member("NAME", "name"), member("N", "n")), items)) == (
        "NAME     N\n王小明   1\nann     12"
    )


def test_wide_table_has_more_columns():
    assert plain(table(COLUMNS, ITEMS, wide=True)).splitlines()[1].split() == [
        "node-1", "7", "10.244.1.2,10.244.1.3", "yes", "ok",
    ]  # fmt: skip


def test_last_column_is_cut_to_fit_a_terminal_and_nothing_else_is():
    columns = (member("NAME", "name"), member("RULE", "rule"))
    cut = table(columns, [{"name": "node-1", "rule": "-s 10.244.0.0/16 -p udp -j DROP"}], width=24)
    assert cut == "NAME    RULE\nnode-1  -s 10.244.0.0/1…"
    assert max(map(len, cut.splitlines())) == 24


def test_spare_columns_are_left_out_where_the_terminal_is_too_narrow():
    columns = (member("NAME", "name"), member("OWNER", "owner", spare=True), member("STATE", "state"))
    items = [{"name": "node-1", "owner": "overlaynet", "state": "ok"}]
    assert plain(table(columns, items, width=24)).splitlines() == ["NAME    STATE", "node-1  ok"]
    assert "OWNER" in table(columns, items, width=25)


def test_table_without_items_is_its_header():
    assert table(COLUMNS, []) == "NAME  PID  IP  STATE"


def test_colour_adds_nothing_that_the_words_do_not_say():
    coloured = table(COLUMNS, ITEMS)
    assert "\x1b[" in coloured
    assert "missing" in plain(coloured)
    assert not any(line.endswith(" ") for line in plain(coloured).splitlines())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("", "-"),
        ([], "-"),
        ({}, "-"),
        (0, "0"),
        (False, "no"),
        (1.50, "1.5"),
        ({"app": "web", "tier": None}, "app=web,tier=-"),
        ((1, "a"), "1,a"),
    ],
)
def test_cells(value, text):
    assert output.cell_text(value) == text


@pytest.mark.parametrize(
    ("span", "text"),
    [(None, "-"), (0.42, "0.4 s"), (35, "35 s"), (720, "12 min"), (86_214, "24 h"), (400_000, "5 d")],
)
def test_spans_for_people(span, text):
    assert output.seconds(span) == text


def test_documents_begin_with_schema_kind_and_lab():
    document = output.document("List", None, {"items": [None]})
    expected = {"schema": "overlaynet/v1", "kind": "List", "lab": None, "items": [None]}
    assert json.loads(output.to_json(document)) == expected
    assert yaml.safe_load(output.to_yaml(document)) == expected


def test_error_block_says_what_why_and_what_next():
    error = LabFailed("etcd did not start", evidence="port in use\npid 7", next=["ss -ltn", "overlaynet up"])
    assert plain(output.error_block(error)) == (
        "error OVL-203: etcd did not start\n  port in use\n  pid 7\n  try  ss -ltn\n  try  overlaynet up"
    )
