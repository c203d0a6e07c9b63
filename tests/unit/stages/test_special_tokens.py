"""What published configs say of special tokens."""

from megalite.stages.special_tokens import SpecialTokens


def test_a_config_says_where_answers_end_and_how_a_decoder_starts():
    assert SpecialTokens.of({}) == SpecialTokens()
    said = {"eos_token_id": 1, "decoder_start_token_id": 0, "forced_bos_token_id": 4}
    assert SpecialTokens.of(said | {"bos_token_id": 9}) == SpecialTokens((1,), 0, 4)
    assert SpecialTokens.of({"eos_token_id": [1, 7], "bos_token_id": 9}) == SpecialTokens((1, 7))


def test_a_decoder_with_a_config_of_its_own_starts_as_a_text_does():
    inner = {"decoder": {"bos_token_id": 2, "eos_token_id": 1}}
    assert SpecialTokens.of(inner) == SpecialTokens((1,), 2)
    assert SpecialTokens.of(inner | {"bos_token_id": 5, "eos_token_id": [1, 107]}) == SpecialTokens(
        (1, 107), 5
    )
    assert SpecialTokens.of(inner | {"decoder_start_token_id": 0}).decoder_start == 0
    assert SpecialTokens.of(
        {"decoder": {"eos_token_id": 1, "bos_token_id": None}, "eos_token_id": None}
    ).ends == (1,)
    outer = {"decoder": {"hidden_size": 4}, "bos_token_id": 2, "eos_token_id": 1}
    assert SpecialTokens.of(outer) == SpecialTokens((1,), 2)
