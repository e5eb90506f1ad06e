"""JSON values as errors and identities see them."""

import hashlib

from longspan.utils.values import canonical_sha256, differences, flat, nearest, shown


def test_the_hash_ignores_the_order_of_keys_only():
    want = hashlib.sha256(b'{"a":[1,2.5,null],"b":"x"}').hexdigest()
    assert canonical_sha256({"b": "x", "a": [1, 2.5, None]}) == want
    assert canonical_sha256({"a": [2.5, 1, None], "b": "x"}) != want


def test_leaves_keep_empty_lists_and_dicts_apart():
    assert flat({"a": [{"b": 1}, []], "c": {}}) == {"a.0.b": 1, "a.1": [], "c": {}}
    assert differences({"c": {}}, {"c": []}) == ["c: {}, now []"]


def test_differences_name_what_came_went_and_changed():
    old = {"stages": [{"length": 512}, {"length": 1024}], "seed": 1}
    new = {"stages": [{"length": 512}, {"length": 2048}], "name": "x"}
    assert differences(old, new) == [
        "stages.1.length: 1024, now 2048",
        "seed: 1, now nothing",
        'name: nothing, now "x"',
    ]
    assert differences(old, old) == []


def test_long_values_are_cut():
    assert shown("x" * 500).endswith("…")
    assert len(shown(list(range(500)))) == 60
    assert shown("short") == '"short"'


def test_nearest():
    assert nearest("liner", ["linear", "yarn"]) == "linear"
    assert nearest("zzz", ["linear", "yarn"]) is None
