import html
import html.parser
import io
import json
import math
import re

import pytest
from rich.console import Console

from past_jax import report
from past_jax.types import UserError

EVIL = '<script>alert("x")</script> & <b>bold</b> \'quoted\''


def completion(text, score=1.0, chosen=False, rejected=False, **kwargs):
  row = {'text': text, 'score': score, 'source': 0, 'chosen': chosen, 'rejected': rejected, 'tokens': 7}
  return {**row, 'finished': True, 'info': {'overlap': 0.25}, **kwargs}


def group(round, index=0, completions=None, text=None):
  default = [completion(f'best {round} {index}', 2.0, chosen=True), completion('worst', -1.0, rejected=True)]
  row = {'step': round * 2, 'stage': 'study', 'round': round, 'text': text or f'Fact {round} {index}.'}
  return {**row, 'prompt': f'Expand: fact {round} {index}', 'completions': completions or default}


def evaluation(when, step, forward, reversed, perplexity, n=48, output='nothing'):
  metrics = {
    'closed_book/forward': forward / n, 'closed_book/forward/n': n, 'closed_book/forward/logp': -20.0 + step,
    'closed_book/reversed': reversed / n, 'closed_book/reversed/n': n, 'perplexity/heldout': perplexity,
  }  # fmt: skip
  sample = {'kind': 'forward', 'question': 'Who did it?', 'answer': 'Ada', 'output': output, 'correct': output == 'Ada'}
  return {'when': when, 'step': step, 'metrics': metrics, 'samples': [sample, {**sample, 'output': output + ' again'}]}


def write_run(path, groups, evaluations, steps=6, finished=True):
  path.mkdir(exist_ok=True)
  steps = [
    {
      'step': s, 'stage': 'study', 'round': s // 2, 'loss': 3.0 / s, 'dpo/loss': 0.5, 'rewards/margins': s - 1.0,
      'study/ties': 0.0, 'my_metric': None if s == 2 else float(s), 'check/sampler_gap': 1e-5 * s,
    }
    for s in range(1, steps + 1)
  ]  # fmt: skip
  for name, rows in (('metrics', steps), ('groups', groups), ('evaluations', evaluations)):
    if rows:
      (path / f'{name}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  config = {
    'model': {'spec': 'scratch:tiny'}, 'data': {'source': 'world:people'}, 'stages': ['study'], 'seed': 0,
    'study': {
      'judge': {'name': 'likelihood_gain'}, 'select': {'name': 'best_vs'},
      'losses': {'group': {'nll': {}, 'dpo': {'beta': 0.0}}, 'text': {'nll': {}}},
    },
  }  # fmt: skip
  (path / 'config.json').write_text(json.dumps(config))
  if finished:
    timing = {'sample': 60.0, 'update': 30.0, 'total': 100.0, 'compile_count': 9, 'compile_count_after_first_round': 0}
    (path / 'timing.json').write_text(json.dumps(timing))
  return path


@pytest.fixture
def run(tmp_path):
  strange = [
    completion(EVIL, 2.0, chosen=True),
    completion('abstaining one', None, info={'overlap': None}),
    completion('given one', 0.5, source=-1),
    completion('too long\x00\ud800', -1.0, rejected=True, finished=False),
    completion('', 0.0),
  ]
  groups = [group(1, 0, strange, text=EVIL), group(1, 1), group(2), group(3)]
  evaluations = [
    evaluation('before', 0, 1, 2, 45.0, output='<i>none</i>'),
    evaluation('round 2', 4, 20, 2, 50.0),
    evaluation('after', 6, 40, 3, 60.0, output='Ada'),
  ]
  return write_run(tmp_path / 'run', groups, evaluations)


class Page(html.parser.HTMLParser):
  """The page as a reader without JavaScript has it: tags in order, attributes, and text outside style and script."""

  VOID = {'meta', 'br', 'input', 'line', 'circle', 'img', 'link', 'hr'}

  def __init__(self, text):
    super().__init__()
    self.tags, self.attributes, self.words, self.stack = [], [], [], []
    self.feed(text)
    self.text = ' '.join(' '.join(self.words).split())

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    self.attributes += attributes
    if tag not in self.VOID:
      self.stack.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.tags.append(tag)
    self.attributes += attributes

  def handle_endtag(self, tag):
    assert self.stack.pop() == tag  # well nested

  def handle_data(self, data):
    if not {'style', 'script'} & set(self.stack):
      self.words.append(data)


def read_page(workdir):
  return Page(report.write(workdir).read_text(encoding='utf-8'))


def test_texts_are_escaped_and_labelled(run):
  source = report.write(run).read_text(encoding='utf-8')
  page = Page(source)
  assert page.stack == []
  assert page.tags.count('script') == 1  # the page's own
  assert '<i>none' not in source and '<b>bold' not in source
  assert page.text.count(EVIL) == 2  # as the passage and as a completion
  for text in ('abstaining one', 'given one', 'too long␀?', '(empty)', '<i>none</i>'):
    assert text in page.text
  assert re.search(r'✓ chosen 2 .*?' + re.escape(EVIL), page.text)
  assert re.search(r'✗ rejected -1 too long␀\? #3 · 7 tokens · cut at the length limit · overlap 0\.25', page.text)
  assert 'not used abstained abstaining one #1 · 7 tokens · overlap –' in page.text
  assert 'not used 0.5 given one given · 7 tokens' in page.text


def test_page_needs_nothing_else(run):
  source = report.write(run).read_text(encoding='utf-8')
  page = Page(source)
  assert not {name for name, _ in page.attributes} & {'src', 'href', 'srcset', 'xlink:href', 'data'}
  assert not {'link', 'img', 'iframe', 'object', 'embed'} & set(page.tags)
  assert not re.search(r'https?:|@import|url\(|fetch\(', source)


def test_table_equals_an_independent_computation(run):
  """Wilson's bounds are the roots in p of (x/n - p)^2 = z^2 p (1 - p) / n; here found by bisection."""

  def bound(x, n, low, high):
    inside = lambda p: (x / n - p) ** 2 <= 1.959963984540054**2 * p * (1 - p) / n
    for _ in range(80):
      middle = (low + high) / 2
      low, high = (low, middle) if inside(middle) == inside(high) else (middle, high)
    return middle

  text = read_page(run).text
  for x in (1, 40, 2, 3):
    low, high = bound(x, 48, 0.0, x / 48), bound(x, 48, x / 48, 1.0)
    assert report.wilson(x / 48, 48) == pytest.approx((low, high), abs=1e-6)
    assert f'{100 * x / 48:.1f} % {100 * low:.0f}–{100 * high:.0f} %' in text
  assert 'closed-book forward 2.1 % 0–11 % 83.3 % 70–91 % 48 ▲ better rose by 81 points' in text
  assert re.search(r'closed-book reversed 4\.2 % \S+ % 6\.2 % \S+ % 48 = no clear change \(\+2 points\)', text)
  assert 'perplexity held-out 45 60 rose by 33 % (lower is better)' in text
  assert 'closed-book forward logp -20 -14 rose by 6.0 nats' in text


def test_difference_interval_has_the_published_value():
  # Newcombe 1998, table II, method 10: 56/70 - 48/80 is 0.2 with (0.0524, 0.3339)
  assert report.difference(48 / 80, 80, 56 / 70, 70) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_before_after_and_its_table(run):
  assert report.before_after(run) == [
    ('closed_book/forward', 1 / 48, 40 / 48),
    ('closed_book/reversed', 2 / 48, 3 / 48),
    ('perplexity/heldout', 45.0, 60.0),
    ('closed_book/forward/logp', -20.0, -14.0),
  ]
  out = io.StringIO()
  report.print_table(run, Console(file=out, width=80))
  lines = [line.split() for line in out.getvalue().splitlines()]
  assert lines[0] == ['before', 'after', 'texts']
  assert lines[1] == ['closed-book', 'forward', '2.1', '%', '[0–11]', '83.3', '%', '[70–91]', '48', '▲', 'better']
  assert lines[3] == ['perplexity', 'held-out', '45', '60']


def test_standard_errors_stand_beside_their_values(tmp_path):
  before = evaluation('before', 0, 1, 0, 45.0)
  before['metrics'] |= {'self_edits/own/accuracy': 0.25, 'self_edits/own/stderr': 0.0625}
  before['metrics'] |= {'self_edits/own/over_base': -0.125, 'self_edits/own/over_base_stderr': 0.03}
  text = read_page(write_run(tmp_path / 'run', [group(1)], [before])).text
  assert '0.25 ± 0.0625' in text and '-0.125 ± 0.03' in text and 'stderr' not in text
  console = Console(file=io.StringIO(), width=100)
  report.print_table(tmp_path / 'run', console)
  assert '0.25 ±\N{NO-BREAK SPACE}0.0625' in console.file.getvalue() and 'after' not in console.file.getvalue()
  assert '± is a standard error' in text and 'not measured' not in text


def test_differences_and_means_are_told_in_their_own_units(tmp_path):
  sides = evaluation('before', 0, 1, 0, 45.0), evaluation('after', 6, 1, 0, 45.1)
  for side, own, over, chars in zip(sides, (0.25, 0.5), (-0.125, -0.0625), (412.0, 412.0)):
    side['metrics'] |= {'self_edits/own/accuracy': own, 'self_edits/own/over_base': over, 'self_edits/n': 20}
    side['metrics'] |= {'self_edits/own/chars': chars, 'sequential/plain/0/1': over}
  page = read_page(write_run(tmp_path / 'run', [group(1)], sides))
  assert 'Self-edits own over-base: rose by 0.0625, -0.125 → -0.0625.' in page.text
  assert 'Self-edits own accuracy: rose by 0.25, 0.25 → 0.5.' in page.text
  assert 'Self-edits own chars: no change, 412 → 412.' in page.text and '± is' not in page.text
  found = {line.name: line.n_text for line in report.lines(sides)}
  assert found['self_edits/own/accuracy'] == '20' and found['closed_book/forward'] == '48'
  curves = next(chart for chart in report.charts(report.read(tmp_path / 'run'))[0] if chart['title'] == 'Right answers')
  assert not [c['name'] for c in curves['curves'] if 'chars' in c['name'] or 'sequential' in c['name']]


def test_a_run_that_did_not_help_says_so(tmp_path):
  same = [evaluation('before', 0, 1, 0, 45.0), evaluation('after', 6, 1, 0, 45.1)]
  text = read_page(write_run(tmp_path / 'run', [group(1)], same)).text
  assert 'Nothing that was asked is clearly answered better than before.' in text
  assert 'Perplexity held-out: rose by 0 % (lower is better), 45 → 45.1.' in text
  worse = [evaluation('before', 0, 40, 0, 45.0), evaluation('after', 6, 1, 0, 45.1)]
  text = read_page(write_run(tmp_path / 'worse', [group(1)], worse)).text
  assert '▼ worse fell by 81 points' in text


def test_summary_timing_checks_and_curves(run):
  page = read_page(run)
  assert 'scratch:tiny studied 4 texts in 3 rounds (data: world:people)' in page.text
  assert 'the judge likelihood_gain scored them and best_vs picked what to learn from.' in page.text
  assert '6 updates changed the weights (losses: nll + dpo on the group, nll on the text).' in page.text
  assert 'It took 2 minutes.' in page.text
  assert '9 programs were compiled, 0 of them after the first round' in page.text
  for line in ('sample 60.0 s · 60 %', 'update 30.0 s · 30 %', 'everything else 10.0 s · 10 %'):
    assert line in page.text
  assert 'check/sampler_gap 1e-5 6e-5 6' in page.text
  assert 'loss 3 → 0.5' in page.text and 'rewards/margins 0 → 5' in page.text
  assert 'my_metric 1 values that were not finite are left out.' in page.text
  assert 'study.losses.group.dpo.beta = 0.0' in page.text  # falsy values too
  assert 'Who did it? Ada ✗ <i>none</i> ✓ Ada' in page.text
  assert 'Who did it? Ada ✗ <i>none</i> again ✗ Ada again' not in page.text  # `correct` is the file's, not ours


def test_half_finished_runs(tmp_path):
  path = write_run(tmp_path / 'run', [], [], steps=0, finished=False)
  text = read_page(path).text
  assert 'scratch:tiny has not finished a round yet.' in text
  assert 'Not there yet: metrics.jsonl, groups.jsonl, evaluations.jsonl, timing.json.' in text
  assert 'No evaluation was written' in text
  write_run(path, [group(1)], [evaluation('before', 0, 1, 2, 45.0)], steps=2, finished=False)
  with (path / 'groups.jsonl').open('a') as file:
    file.write('{"step": 3, "sta')  # the kill
  text = read_page(path).text
  assert 'Only the evaluation before training is there' in text and 'not finished' in text and 'best 1 0' in text
  write_run(path, [group(1)], [evaluation('before', 0, 1, 2, 45.0), evaluation('round 1', 2, 9, 2, 45.0)], steps=2)
  text = read_page(path).text
  assert 'the latest evaluation is that of round 1, at step 2.' in text
  assert report.before_after(path)[0] == ('closed_book/forward', 1 / 48, 9 / 48)
  (path / 'config.json').unlink()
  assert 'A language model studied 1 text in 1 round.' in read_page(path).text


def test_a_run_that_goes_on_after_its_end_is_not_finished(tmp_path):
  evaluations = [evaluation('before', 0, 1, 2, 45.0), evaluation('after', 4, 9, 2, 45.0)]
  assert 'not finished' in read_page(write_run(tmp_path / 'a', [group(1)], evaluations, steps=6)).text
  assert 'not finished' not in read_page(write_run(tmp_path / 'b', [group(1)], evaluations, steps=4)).text


def test_what_is_no_run_is_a_clear_error(tmp_path):
  with pytest.raises(UserError, match='is not a directory'):
    report.write(tmp_path / 'nowhere')
  with pytest.raises(UserError, match='none of the files of a run'):
    report.write(tmp_path)
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(UserError, match=r'config\.json is not JSON'):
    report.write(tmp_path)
  (tmp_path / 'config.json').unlink()
  (tmp_path / 'groups.jsonl').write_text('{"step": 1}\n')
  with pytest.raises(UserError, match=r'groups\.jsonl:1 .* completions, prompt'):
    report.write(tmp_path)


def test_large_runs_stay_small_and_say_what_is_left_out(tmp_path):
  words = 'a much longer completion that goes on & on. ' * 20
  make = lambda r, i: group(r, i, [completion(f'r{r} i{i} {words}', float(g), chosen=g == 7) for g in range(8)])
  groups = [make(r, i) for r in range(1, 51) for i in range(8)]
  path = write_run(tmp_path / 'run', groups, [evaluation('before', 0, 1, 2, 45.0)], steps=2000)
  written = report.write(path)
  assert written.stat().st_size < 2_000_000
  text = Page(written.read_text()).text
  shown = int(re.search(r'(\d+) of 400 groups are on this page', text)[1])
  assert shown == len(re.findall(r'8 completions · scores', text))
  left_out = [int(n) for n in re.findall(r'groups?, (\d+) more left out', text)]
  rounds = set(re.findall(r'round (\d+) ·', text))
  assert {'1', '50'} <= rounds
  assert shown + sum(left_out) + 8 * (50 - len(rounds)) == 400
  for featured in (1, 50):  # the first and the last round
    assert all(f'r{featured} i{i} a' in text for i in range(report.SHOWN))
  assert 'Each point is the mean of 7 steps.' in text


@pytest.mark.parametrize(
  'value, text',
  [(0.0, '0'), (1.23456, '1.235'), (3e-5, '3e-5'), (123456.0, '123,456'), (-0.5, '-0.5'), (math.inf, 'inf')],
)
def test_number(value, text):
  assert report.number(value) == text


@pytest.mark.parametrize('low, high', [(0, 1), (-3.2, 5.1), (0.9, 96.1), (1e-6, 3e-5), (45, 45.001)])
def test_ticks_are_few_round_and_inside(low, high):
  found = report.ticks(low, high)
  assert 2 <= len(found) <= 6
  assert all(low - 1e-9 <= t <= high + 1e-9 for t in found)


def test_chart_maps_values_to_places():
  c = report.chart('t', '', {'a': [(0, 0.0), (10, 1.0)]})
  (x0, y0), (x1, y1) = c['curves'][0]['dots']
  assert (x0, x1) == (report.LEFT, report.WIDTH - report.RIGHT)
  assert y0 == report.HEIGHT - report.BOTTOM and report.TOP < y1 < y0
  assert all(math.isclose(x, x0 + (x1 - x0) * float(label) / 10, abs_tol=0.1) for x, label in c['x'])
  assert all(math.isclose(y, y0 + (y1 - y0) * float(label), abs_tol=0.1) for y, label in c['y'])
  assert report.chart('t', '', {'a': [(1, None)]}) is None
  assert '(log scale)' in report.chart('t', '', {'a': [(0, 0.01), (10, 10.0)]})['title']


def improved_evaluation(when, step, won):
  """Two judges, two iterations, and a baseline; `won`: share of the policy's second responses that are better."""
  metrics = {'improvement/marks/draft': 0.25, 'improvement/marks/good': 0.4, 'improvement/trimmed': 0.0}
  for prefix in ('improvement', 'improvement/baseline'):
    for judge in ('marks', 'model'):
      for i, win in ((1, 0.25), (2, won if prefix == 'improvement' else 0.5)):
        at = f'{prefix}/{judge}/t0.4/i{i}'
        metrics |= {f'{at}/win': win, f'{at}/win/n': 20, f'{at}/lose': 0.25, f'{at}/delta': win - 0.25}
        metrics |= {f'{at}/elo': -12.4, f'{at}/score': 0.3, f'{at}/delta_low': 1.0}
    metrics |= {f'{prefix}/text/t0.4/i2/copied': 0.15, f'{prefix}/text/t0.4/i2/length': 1.25}
  step_ = lambda text, marks, model: {'text': text, 'score': {'marks': marks, 'model': model}}
  chain = [step_('first try', 0.0, -1.0), step_(EVIL, 1.0, -2.0), step_(EVIL, 1.0, None)]
  sample = {'kind': 'improvement/t0.4', 'question': 'Say it:', 'answer': 'first try', 'output': EVIL, 'correct': True}
  samples = [{**sample, 'chain': chain} for _ in range(report.CHAINS + 3)]
  return {'when': when, 'step': step, 'metrics': metrics, 'samples': samples}


def test_chains_of_improved_responses(tmp_path):
  evaluations = [improved_evaluation('before', 0, 0.25), improved_evaluation('after', 6, 0.75)]
  path = write_run(tmp_path / 'run', [group(1)], evaluations)
  page = read_page(path)
  assert page.stack == [] and page.tags.count('script') == 1
  assert page.text.count('first try') == report.CHAINS and '3 more in evaluations.jsonl' in page.text
  assert f'draft first try marks 0 · model -1 improved 1 {EVIL} marks 1 ▲ · model -2 ▼' in page.text
  assert f'improved 2 {EVIL} marks 1 ▲ · model abstains · unchanged' in page.text
  assert 'Closed-book answers' not in page.text
  assert 'judge marks · mean score of drafts 0.25 · good drafts 40 %' in page.text
  assert '0.4 2 policy 75 % 53–89 % 25 % +50 +100 – – 0.3 – 15 % 1.25 −12' in page.text  # Wilson of 15 of 20
  assert '0.4 2 baseline 50 % 30–70 % 25 % +25' in page.text
  assert [name for name, *_ in report.before_after(path)] == [
    f'improvement/{j}/t0.4/i2/delta' for j in ('marks', 'model')
  ]
  assert 'Improvement 2 at temperature 0.4, by marks: changed by +50 points, +0 points → +50 points.' in page.text
  assert 'Right answers' not in page.text and 'Nothing that was asked' not in page.text


def test_chains_before_training_are_shown_as_such(tmp_path):
  path = write_run(tmp_path / 'run', [], [improved_evaluation('before', 0, 0.25)], steps=2, finished=False)
  assert 'that were not trained on: before training.' in read_page(path).text
