from mezzotint.session import FINAL, NEXT, State


def test_nothing_leaves_a_final_state_and_every_state_is_in_the_table() -> None:
    assert set(NEXT) == set(State)
    assert {state for state, after in NEXT.items() if not after} == FINAL


def test_every_state_can_be_reached_and_can_end() -> None:
    reached = {State.QUEUED}
    while more := {after for state in reached for after in NEXT[state]} - reached:
        reached |= more
    assert reached == set(State)
