from mezzotint.families import mentions

NAMES = mentions.names([("bad-hands", "emb_params"), ("bad-hands-5", "clip_l"), ("Neg", "*"), ("toy", "<cat toy>")])


def named(text: str) -> list[str]:
    return mentions.ids([text], NAMES)


def test_a_name_is_a_whole_word_in_any_letter_case() -> None:
    assert named("NEG, blurry") == ["Neg"]
    assert named("(neg:1.2) [neg]") == ["Neg"]
    assert named("negative, a neg-ative, _neg, neg2") == []
    assert named("") == []


def test_of_names_that_begin_alike_the_longer_counts() -> None:
    assert named("bad-hands-5 and bad-hands.") == ["bad-hands-5", "bad-hands"]
    assert named("bad-hands-55") == []


def test_comfyuis_word_before_a_name_belongs_to_it() -> None:
    pieces = list(mentions.split("a dog, embedding:neg, fog", NAMES))
    assert pieces == [("a dog, ", None), ("embedding:neg", "Neg"), (", fog", None)]


def test_a_token_of_training_stands_for_the_id_and_an_id_for_itself_first() -> None:
    names = mentions.names([("toy", "<cat>"), ("<cat>", "emb_params"), ("other", "<dog>")])
    assert mentions.ids(["a <cat> and a <DOG>"], names) == ["<cat>", "other"]
    assert "<cat toy>" not in NAMES, "two words are no token"
    assert "emb_params" not in NAMES
    assert "*" not in NAMES


def test_each_is_told_once_in_the_order_of_the_texts() -> None:
    assert mentions.ids(["neg bad-hands neg", "bad-hands-5 neg"], NAMES) == ["Neg", "bad-hands", "bad-hands-5"]


def test_without_names_a_text_is_one_piece() -> None:
    assert list(mentions.split("neg", {})) == [("neg", None)]
