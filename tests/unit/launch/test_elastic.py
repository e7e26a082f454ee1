"""What of torchrun is replaced does what it did."""

from __future__ import annotations

from torch.distributed.elastic.rendezvous import dynamic_rendezvous

from everstep.launch import elastic


def test_the_name_of_a_caller_is_torchruns() -> None:
    def asks(depth: int) -> tuple[str, str]:
        theirs: str = dynamic_rendezvous.get_method_name(depth)  # type: ignore[no-untyped-call]
        return theirs, elastic.caller_name(depth)

    for depth in (1, 2, 5, 500):
        one, other = asks(depth)
        assert one == other
