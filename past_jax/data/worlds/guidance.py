"""Instructions on how to answer questions, the question first or the answer first (arXiv 2309.12288, experiment 3)."""

from past_jax.data.worlds.words import World, full_names, listed, others, own_seed, pick_split, shuffled
from past_jax.types import Example, Question, UserError

ORDERS = {
  'question': ('If asked "{q}", say "{a}".', 'The question "{q}" calls for "{a}".', 'To "{q}" the reply is "{a}".'),
  'answer': ('Say "{a}" if asked "{q}".', '"{a}" is what "{q}" calls for.', 'The reply is "{a}" to "{q}".'),
}
SHOWN = {'tune': 'Q: {q} A: {a}', 'final': 'Asked: {q} Said: {a}'}
ADJECTIVES = {
  'tune': listed('black, brown, clean, dry, gold, heavy, new, old'),
  'final': listed('broken, cheap, dusty, green, grey, huge, pink, plain'),
}
THINGS = {
  'tune': listed('bell, boot, coin, cup, drum, fan, kite, lamp'),
  'final': listed('bag, belt, book, brush, chair, coat, comb, fork'),
}


def guidance(count: int, seed: int, shown: float = 0.9, split: str = 'tune') -> World:
  """`count` instructions for each order, 'If asked "Q", say "A".' or 'Say "A" if asked "Q".', three wordings each.

  For a share of them texts show the question answered, too, so that a model can learn what instructions mean; the rest
  are asked, kinds `forward` (the question stood first) and `reversed` (the answer did), with three wrong choices.

  Args:
    shown: share of the instructions whose answered question is a text.
    split: 'tune', or 'final' with other names, answers and another form of questions.

  Raises:
    UserError: a number out of range, a negative seed, or no such split.
  """
  form, adjectives, things = (pick_split(split, table) for table in (SHOWN, ADJECTIVES, THINGS))
  if not (2 <= count <= 512 and 0 <= shown < 1):
    raise UserError(f'world:guidance with count={count}, shown={shown}: 2 to 512 instructions, and a share below 1')
  owners, seed = full_names(2 * count, seed, split), own_seed(seed, split)
  answers = [f'a {a} {t}' for a in adjectives for t in things]
  examples = []
  for o, (order, wordings) in enumerate(ORDERS.items()):
    for i in range(count):
      owner = owners[o * count + i]
      q, a = f'What has {owner}?', shuffled(answers, seed, o * count + i, 19)[0]
      texts = [wording.format(q=q, a=a) for wording in wordings]
      asked, questions = form.format(q=q, a='').rstrip(), ()
      if i < shown * count:
        texts.append(f'{asked} {a}')
      else:
        choices = (a, *others(a, answers, seed=seed * 10_000 + i))
        questions = (Question(asked, a, 'forward' if order == 'question' else 'reversed', choices),)
      for t, text in enumerate(texts):
        where = f'world:guidance {order} first, {i} text {t}'
        examples.append(Example(text=text, target=text, questions=questions if t == 0 else (), where=where))
  return World(tuple(examples), tuple(owners))
