import hashlib

from runtime.averaging.lineage import first_lineage, next_lineage

RUN, A, B, C, D = "5" * 40, b"a" * 32, b"b" * 32, b"c" * 32, b"d" * 32


def test_the_chain_is_the_hash_of_all_its_parts_in_order() -> None:
    assert first_lineage(RUN, A) == hashlib.sha256(b"atoll lineage 0" + RUN.encode() + A).digest()
    parts = b"atoll lineage" + A + bytes(7) + b"\7" + B + C + D + A
    assert next_lineage(A, 7, B, C, [D, A]) == hashlib.sha256(parts).digest()


def test_every_part_changes_the_lineage() -> None:
    lineages = {
        next_lineage(A, 7, B, C, [D]),
        next_lineage(B, 7, B, C, [D]),
        next_lineage(A, 8, B, C, [D]),
        next_lineage(A, 7, A, C, [D]),
        next_lineage(A, 7, B, A, [D]),
        next_lineage(A, 7, B, C, [A]),
        next_lineage(A, 7, B, C, [D, D]),
        next_lineage(A, 7, B, C, []),
        first_lineage(RUN, A),
        first_lineage(RUN, B),
        first_lineage("6" * 40, A),
    }
    assert len(lineages) == 11
    assert {len(lineage) for lineage in lineages} == {32}


def test_the_order_of_shards_counts() -> None:
    assert next_lineage(A, 0, B, C, [A, B]) != next_lineage(A, 0, B, C, [B, A])
