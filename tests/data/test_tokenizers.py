"""Tokenizers of all kinds behind one interface, with the files' own ids."""

import concurrent.futures
import pickle

import pytest
import sentencepiece
import tokenizers as hf

from mmjax.data import tokenizers
from mmjax.data import transforms

TEXTS = ["a red cube", "two blue spheres behind a cone", "a cube"] * 5


@pytest.fixture(scope="module")
def json_path(tmp_path_factory):
  tokenizer = hf.Tokenizer(hf.models.WordLevel(unk_token="<unk>"))
  tokenizer.pre_tokenizer = hf.pre_tokenizers.Whitespace()
  specials = ["<pad>", "<bos>", "<eos>", "<unk>"]
  tokenizer.train_from_iterator(TEXTS, hf.trainers.WordLevelTrainer(special_tokens=specials))
  tokenizer.enable_padding(length=50)
  tokenizer.enable_truncation(2)
  path = str(tmp_path_factory.mktemp("hf") / "vocabulary.json")
  tokenizer.save(path)
  return path


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
  folder = tmp_path_factory.mktemp("sp")
  (folder / "text.txt").write_text("\n".join(TEXTS))
  sentencepiece.SentencePieceTrainer.train(
      input=str(folder / "text.txt"), model_prefix=str(folder / "small"), vocab_size=25,
      pad_id=3, minloglevel=2)
  return str(folder / "small.model")


@pytest.mark.parametrize("text", ["a red cube", "", "naïve 日本 🟥"])
def test_bytes_are_utf8_shifted_by_three(text):
  tokenizer = tokenizers.load("bytes")
  ids = tokenizer.encode(text)
  assert ids == [b + 3 for b in text.encode()] and max(ids, default=0) < tokenizer.vocab_size
  assert tokenizer.decode([1, *ids, 2, 0, 0]) == text


def test_a_json_vocabulary_gives_its_own_ids_without_its_own_padding(json_path):
  tokenizer = tokenizers.load(json_path)
  reference = hf.Tokenizer.from_file(json_path)
  text = "two blue spheres"
  assert tokenizer.encode(text) == [reference.token_to_id(word) for word in text.split()]
  assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
  assert tokenizer.vocab_size == reference.get_vocab_size()
  assert tokenizer.decode([1, *tokenizer.encode(text), 2, 0]) == text


def test_a_sentencepiece_model_gives_its_own_ids(model_path):
  tokenizer = tokenizers.load(model_path)
  reference = sentencepiece.SentencePieceProcessor(model_file=model_path)
  assert tokenizer.encode("a red cube") == reference.encode("a red cube")
  assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (3, 1, 2)
  assert tokenizer.vocab_size == 25
  assert tokenizer.decode([1, *tokenizer.encode("a red cube"), 2, 3]) == "a red cube"


def test_an_absent_special_token_is_none_and_cannot_be_asked_for(tmp_path):
  path = str(tmp_path / "plain.json")
  hf.Tokenizer(hf.models.WordLevel({"a": 0, "?": 1}, unk_token="?")).save(path)
  tokenizer = tokenizers.load(path)
  assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (None, None, None)
  with pytest.raises(ValueError, match="no end token"):
    transforms.Tokenise(path, 4)


def test_threads_and_pickled_transforms_agree(json_path, model_path):
  for name in ("bytes", json_path, model_path):
    transform = transforms.Tokenise(name, 12)
    copy = pickle.loads(pickle.dumps(transform))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
      many = list(pool.map(lambda text: copy({"caption": text}, None)["text"].tolist(), TEXTS))
    assert many == [transform({"caption": text}, None)["text"].tolist() for text in TEXTS]


def test_an_unknown_name_or_a_damaged_file_is_one_clear_error(tmp_path):
  with pytest.raises(ValueError, match="'bytes', 'scenes', or a path"):
    tokenizers.load("byte")
  with pytest.raises(ValueError, match="there is no file"):
    tokenizers.load(str(tmp_path / "none.json"))
  for ending in ("json", "model"):
    path = tmp_path / f"bad.{ending}"
    path.write_bytes(b"{nonsense")
    with pytest.raises(ValueError, match="cannot read"):
      tokenizers.load(str(path))
