from selftrain_jax.data.texts import shuffle_words


def test_shuffling_keeps_the_words_of_each_text_and_loses_their_order():
    texts = ["a b c d e f g h", "", "one\ntwo  three four five six seven", "alone"]
    shuffled = shuffle_words(texts, seed=3)
    assert [sorted(text.split()) for text in shuffled] == [sorted(text.split()) for text in texts]
    assert shuffled[0] != texts[0] and shuffled[2].split() != texts[2].split()
    assert shuffled == shuffle_words(texts, seed=3) != shuffle_words(texts, seed=4)
