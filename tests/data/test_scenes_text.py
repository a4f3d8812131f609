"""Captions, questions and vocabulary of the built-in dataset `scenes`."""

import collections
import json
import math

import pytest
import tokenizers

from mmjax.data.scenes import attributes, captions, chance, questions, sample, vocabulary

SAMPLE = 6000


def text(split, index):
  scene = sample.sample(0, split, index)
  words = chance.stream("text", split, index)
  return scene, captions.captions(scene, words), questions.questions(scene, words)


@pytest.fixture(scope="module")
def asked():
  """{type: [(question, answer)]} over many train records."""
  result = collections.defaultdict(list)
  for index in range(SAMPLE):
    for question, answer, kind in zip(*text("train", index)[2]):
      result[kind].append((question, answer))
  return result


# Captions

def test_each_kind_of_caption_is_there_and_complete_kinds_name_every_object():
  for index in range(200):
    scene, found, _ = text("train", index)
    assert len(found) == len(attributes.CAPTION_KINDS)
    for kind in attributes.COMPLETE_CAPTIONS:
      caption = found[attributes.CAPTION_KINDS.index(kind)]
      for thing in scene.things:
        shape = attributes.SHAPES[thing.shape]
        names = (shape,) + captions.SHAPE_WORDS[shape]
        colour = attributes.COLOURS[thing.colour]
        assert any(f"{colour} {name}" in caption for name in names), (caption, colour, shape)


def test_detailed_captions_tell_512_test_scenes_apart():
  kind = attributes.CAPTION_KINDS.index("detailed")
  assert len({text("test", index)[1][kind] for index in range(512)}) > 505


def test_relations_in_captions_hold():
  for index in range(100):
    seen = captions.views(sample.sample(0, "train", index))
    for a in seen:
      for b in seen:
        for name in captions.relation(a, b):
          assert captions.RELATIONS[name][1] in captions.relation(b, a)
          assert name != "left" or a.x < b.x
          assert name != "front" or a.depth < b.depth


# Questions

def test_every_type_is_asked_often_and_answers_are_the_listed_ones(asked):
  assert set(asked) == set(attributes.QUESTION_TYPES)
  for kind, pairs in asked.items():
    assert len(pairs) > SAMPLE / 20, kind
    assert {answer for _, answer in pairs} == set(questions.ANSWERS[kind]), kind


@pytest.mark.parametrize("kind", attributes.QUESTION_TYPES)
def test_constant_answer_is_no_better_than_chance(asked, kind):
  answers = collections.Counter(answer for _, answer in asked[kind])
  best = max(answers.values()) / sum(answers.values())
  # 0.04: three standard errors of a half at the rarest type's sample size are 0.04 or less.
  assert best < 1 / len(questions.ANSWERS[kind]) + 0.04, answers


@pytest.mark.parametrize("kind", attributes.QUESTION_TYPES)
def test_guess_from_the_question_alone_is_hardly_better_than_chance(asked, kind):
  """Naive Bayes on the words, learnt on one half and tried on the other."""
  half = len(asked[kind]) // 2
  guess = naive_bayes(asked[kind][:half])
  right = sum(guess(question) == answer for question, answer in asked[kind][half:])
  # 0.06: chance of the sample as above, and a colour's or shape's held-out pair (questions.py).
  assert right / (len(asked[kind]) - half) < 1 / len(questions.ANSWERS[kind]) + 0.06


def naive_bayes(pairs):
  """question -> the most likely answer by its words."""
  prior = collections.Counter(answer for _, answer in pairs)
  words = {answer: collections.Counter() for answer in prior}
  for question, answer in pairs:
    words[answer].update(set(question.split()))

  def guess(question):
    return max(prior, key=lambda a: math.log(prior[a]) + sum(
      math.log((words[a][word] + 1) / (prior[a] + 2)) for word in set(question.split())))
  return guess


def test_answers_are_true():
  """Counts, and attributes of objects that a question names by its other attributes."""
  for index in range(400):
    scene, _, (asked_, answers, kinds) = text("train", index)
    seen = captions.views(scene)
    for question, answer, kind in zip(asked_, answers, kinds):
      if kind == "count":
        assert answer == captions.NUMBERS[len(seen)]
      elif kind == "exist":
        colour, shape = question.rstrip("?").split()[-2:]
        assert (answer == "yes") == any((v.colour, v.shape) == (colour, shape) for v in seen)
      elif kind in ("colour", "shape", "size", "material"):
        assert answer in {getattr(v, kind) for v in matching(seen, question)}


def matching(seen, question):
  """The objects that have every attribute that the question names."""
  words = set(question.rstrip("?.").split())
  fit = lambda name, others: name in words or bool(set(others) & words)
  result = list(seen)
  for field, synonyms in (("size", captions.SIZE_WORDS), ("material", captions.MATERIAL_WORDS),
                          ("shape", captions.SHAPE_WORDS),
                          ("colour", {c: () for c in attributes.COLOURS})):
    named = [name for name, others in synonyms.items() if fit(name, others)]
    if named:
      result = [view for view in result if getattr(view, field) == named[0]]
  return result


# Vocabulary

def test_every_word_of_the_generator_is_one_token():
  tokenizer = tokenizers.Tokenizer.from_file(str(vocabulary.PATH))
  words = {word for text_ in vocabulary.texts(300, seed=1) for word in text_.split()}
  words |= set(attributes.COLOURS + attributes.SHAPES + attributes.SIZES + attributes.MATERIALS)
  split = {word for word in words
           if len(tokenizer.encode(word.strip(".,:?")).ids) != 1}
  assert not split


def test_special_tokens_come_first_and_any_text_survives():
  tokenizer = tokenizers.Tokenizer.from_file(str(vocabulary.PATH))
  assert [tokenizer.token_to_id(name) for name in vocabulary.SPECIALS] == [0, 1, 2, 3, 4]
  strange = "über 你好 🙂 qwxz_9"
  ids = tokenizer.encode(strange).ids
  assert tokenizer.token_to_id("<unk>") not in ids
  assert tokenizer.decode(ids).strip() == strange


@pytest.mark.slow
def test_shipped_vocabulary_is_what_its_command_trains():
  assert json.loads(vocabulary.train().to_str()) == json.loads(vocabulary.PATH.read_text())
