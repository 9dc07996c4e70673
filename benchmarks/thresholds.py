"""The threshold's rule: false rejects and escapes of every rule on the same scores, as `docs/accuracy.md` reports them.

Each picture is encoded once. For each draw of shots the bank is built and its calibration's scores are taken as the daemon
does; then every rule makes a threshold of those scores, and the test pictures' scores say how good it is. SETS is a folder of
categories in MVTec AD's layout. Aims, on the mean of the sets: 2 % false rejects, 5 % escapes.

    OMP_NUM_THREADS=1 python -m benchmarks.thresholds SETS --shots 1,2,4,8,16 --seeds 8 [--save scores.json]
    python -m benchmarks.thresholds --load scores.json

--asymmetric inverts the left half of every picture: no part then looks like its mirror image.
"""

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter
from scipy.stats import t as student_t

from connectors.cameras.pictures import read_picture
from daemon.evaluate import check_shots, settings_of
from daemon.evaluate import draw as draw_shots
from daemon.presets import load_preset
from model.bank import build_bank
from model.calibration import LONE_FACTOR, MIRROR_ROOM, SELF_ROOM, calibrate, false_reject_rule, mirror, threshold_rule
from model.dataset import read_dataset
from model.detector import Detector, Reference
from model.features import PatchFeatures, create_extractor, join

AIM_REJECTS, AIM_ESCAPES = 0.02, 0.05
EULER = 0.5772156649015329


@dataclass(frozen=True)
class Draw:
    """Scores of one draw of shots from a set: what a rule may know (`own`, `mirrors`, `self_test`), and what it will meet."""

    category: str
    shots: int
    seed: int
    own: tuple[float, ...]
    mirrors: tuple[float, ...]
    self_test: tuple[float, ...]
    good: tuple[float, ...]
    bad: tuple[float, ...]

    def rates(self, threshold: float) -> tuple[float, float]:
        """(false rejects, escapes), 0..1."""
        return float(np.mean(np.array(self.good) > threshold)), float(np.mean(np.array(self.bad) <= threshold))

    @property
    def reachable(self) -> float:
        """The threshold, chosen on the test pictures, that rejects as many good ones as the aim allows."""
        return sorted(self.good)[-1 - math.floor(AIM_REJECTS * len(self.good))]


DRAWS = TypeAdapter(list[Draw])
Pool = Callable[[Sequence[float]], float]
Rule = Callable[[Draw], float]


def collect(sets: Path, preset: str, shots: Sequence[int], seeds: int, asymmetric: bool) -> list[Draw]:
    """All draws of all sets; a line on each set as it is done."""
    detector = Detector(create_extractor(load_preset(preset, Path())))
    categories, settings = read_dataset(sets), settings_of("few_shot", shots, seeds)
    check_shots(categories, settings)

    @cache
    def encoded(path: Path, mirrored: bool) -> PatchFeatures:
        pixels = read_picture(path)
        if asymmetric:
            middle = pixels.shape[1] // 2
            pixels = np.concatenate([255 - pixels[:, :middle], pixels[:, middle:]], axis=1)
        return detector.encode([mirror(pixels) if mirrored else pixels])

    draws = []
    for category in categories:
        for setting in settings:
            drawn = draw_shots(category, setting)
            features, mirrored = join([encoded(path, False) for path in drawn]), [encoded(path, True) for path in drawn]
            most = detector.extractor.spec.bank_rows
            names = [path.name for path in drawn]
            bank = build_bank(features, fingerprint=detector.fingerprint, shots=names, max_rows=most)
            told = calibrate(detector, features, mirrored, Reference(bank))
            reference = told.apply(Reference(bank))
            scores: dict[bool, list[float]] = {False: [], True: []}
            for sample in category.test:
                judged = detector.judge_features(encoded(sample.picture, False), [reference])
                scores[sample.defect is not None].append(float(judged.scores[0]))
            good, bad = tuple(scores[False]), tuple(scores[True])
            own = told.shot_scores, told.mirror_scores, told.self_test
            draws.append(Draw(category.name, setting.shots, setting.seed, *own, good, bad))
        encoded.cache_clear()
        print(f"{category.name}: {len(settings)} draws judged", flush=True)
    return draws


# rules: from scores that the bank has not seen


def largest(factor: float, scores: Sequence[float]) -> float:
    """Times the factor."""
    return max(scores) * factor


def spread(count: float, scores: Sequence[float]) -> float:
    """So many standard deviations over the mean."""
    return statistics.fmean(scores) + count * statistics.stdev(scores)


def conformal(share: float, scores: Sequence[float]) -> float:
    """The quantile that at most this share of new scores passes, if all are exchangeable (Vovk et al. 2005): of n scores the
    ceil((n + 1)(1 - share))-th smallest; the largest where there are too few for it."""
    at = math.ceil((len(scores) + 1) * (1 - share))
    return sorted(scores)[min(at, len(scores)) - 1]


def gumbel(quantile: float, scores: Sequence[float]) -> float:
    """The quantile of the extreme-value distribution with these mean and standard deviation."""
    scale = statistics.stdev(scores) * math.sqrt(6) / math.pi
    return statistics.fmean(scores) - scale * (EULER + math.log(-math.log(quantile)))


def student(scores: Sequence[float]) -> float:
    """The bound that a new score passes in 2 %, if scores are normal: mean + t s sqrt(1 + 1/n)."""
    return spread(float(student_t.ppf(0.98, len(scores) - 1)) * math.sqrt(1 + 1 / len(scores)), scores)


POOLS: dict[str, Pool] = {
    **{f"largest x {factor}": partial(largest, factor) for factor in (1.0, 1.05, 1.1, 1.2)},
    **{f"mean + {count} s": partial(spread, count) for count in (1.5, 2.0, 2.5, 3.0)},
    **{f"conformal {share:.0%}": partial(conformal, share) for share in (0.02, 0.1)},
    **{f"Gumbel {quantile:.0%}": partial(gumbel, quantile) for quantile in (0.95, 0.98)},
    "Student's t 98%": student,
}


def at_least(pool: Pool, room: float | None, draw: Draw) -> float:
    """A rule of 2 shots or more, never under what the self-test needs. room: for mirror images; None: without them."""
    scores = list(draw.own)
    if room is not None:
        scores += [min(score, room * max(draw.own)) for score in draw.mirrors]
    return max(pool(scores), SELF_ROOM * max(draw.self_test))


def all_unlike(draw: Draw) -> float:
    """The shipped rule where every mirror image is as unlike a good part as is counted."""
    return threshold_rule(draw.own, [math.inf] * draw.shots, draw.self_test)


def lone(factor: float, draw: Draw) -> float:
    """A rule of a lone shot, its mirror image alone."""
    return max(factor * max(draw.mirrors), SELF_ROOM * max(draw.self_test))


def shipped(draw: Draw) -> float:
    """What the daemon does."""
    return threshold_rule(draw.own, draw.mirrors, draw.self_test)


# tables


def mean_of(draws: Sequence[Draw], value: Callable[[Draw], float]) -> float:
    """Each set counting the same."""
    sets = {draw.category for draw in draws}
    return statistics.fmean(statistics.fmean(value(draw) for draw in draws if draw.category == name) for name in sets)


def cell(draws: Sequence[Draw], rule: Rule) -> tuple[float, float]:
    """(false rejects, escapes), 0..1, mean of the sets."""
    return mean_of(draws, lambda draw: draw.rates(rule(draw))[0]), mean_of(draws, lambda draw: draw.rates(rule(draw))[1])


def rule_table(draws: Sequence[Draw], rules: dict[str, Rule]) -> None:
    """Mean of the sets; "times the aims": false rejects over theirs and escapes over theirs, from 4 shots on."""
    counts = sorted({draw.shots for draw in draws})
    print(f"\n| rule | {' | '.join(f'{count} shots' for count in counts)} | times the aims |\n|---{'|---' * (len(counts) + 1)}|")
    for name, rule in rules.items():
        cells = {count: cell([draw for draw in draws if draw.shots == count], rule) for count in counts}
        later = [rejects / AIM_REJECTS + escapes / AIM_ESCAPES for count, (rejects, escapes) in cells.items() if count >= 4]
        shown = " | ".join(f"{rejects * 100:.1f} / {escapes * 100:.1f}" for rejects, escapes in cells.values())
        print(f"| {name} | {shown} | {f'{statistics.fmean(later):.1f}' if later else ''} |")


def set_table(draws: Sequence[Draw]) -> None:
    """The shipped rule on each set, what any threshold could reach there, and what the calibration expects."""
    heads = ("set", "shots", "false rejects %, least to most", "expected %", "over its interval", "escapes %")
    print(f"\n| {' | '.join((*heads, 'escapes % where 2 % of the good fail'))} |\n|{'---|' * 7}")
    for name in dict.fromkeys(draw.category for draw in draws):
        for count in dict.fromkeys(draw.shots for draw in draws):
            own = [draw for draw in draws if (draw.category, draw.shots) == (name, count)]
            rejects, escapes = zip(*(draw.rates(shipped(draw)) for draw in own), strict=True)
            least = statistics.fmean(draw.rates(draw.reachable)[1] for draw in own)
            told = [false_reject_rule(draw.own, draw.mirrors, draw.self_test) for draw in own]
            expected, over = "", ""
            if all(told):
                expected = f"{statistics.fmean(one.expected for one in told if one) * 100:.1f}"
                over = f"{sum(share > one.high for share, one in zip(rejects, told, strict=True) if one)} of {len(own)}"
            shown = f"{statistics.fmean(rejects) * 100:.1f}, {min(rejects) * 100:.0f} to {max(rejects) * 100:.0f}"
            shown += f" | {expected} | {over} | {statistics.fmean(escapes) * 100:.1f} | {least * 100:.1f}"
            print(f"| {name} | {count} | {shown} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.thresholds")
    parser.add_argument("sets", type=Path, nargs="?")
    parser.add_argument("--preset", default="efficientnet-lite0")
    parser.add_argument("--shots", default="1,2,4,8,16")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--asymmetric", action="store_true")
    parser.add_argument("--save", type=Path, help="keep the scores")
    parser.add_argument("--load", type=Path, help="take the scores from there")
    options = parser.parse_args()
    if (options.sets is None) == (options.load is None):
        parser.error("expected SETS or --load")
    counts = [int(count) for count in options.shots.split(",")]
    if options.load:
        draws = [draw for draw in DRAWS.validate_json(options.load.read_bytes()) if draw.shots in counts]
    else:
        draws = collect(options.sets, options.preset, counts, options.seeds, options.asymmetric)
    if options.save:
        options.save.write_bytes(DRAWS.dump_json(draws))
    rooms = (("the shots", None), ("and mirror images", math.inf), (f"and mirror images to {MIRROR_ROOM}", MIRROR_ROOM))
    print(f"false rejects / escapes in %, mean of the sets; no threshold under {SELF_ROOM} x the largest self-test score")
    more, one = [draw for draw in draws if draw.shots > 1], [draw for draw in draws if draw.shots == 1]
    if more:
        rules: dict[str, Rule] = {
            f"{name}, {words}": partial(at_least, pool, room) for name, pool in POOLS.items() for words, room in rooms
        }
        rules |= {"shipped": shipped, "shipped, if every mirror image were unlike": all_unlike}
        rule_table(more, {**rules, "any, chosen on the test pictures": lambda draw: draw.reachable})
    if one:
        rule_table(one, {f"mirror image x {factor}": partial(lone, factor) for factor in (1.0, 1.2, LONE_FACTOR, 1.6, 2.0)})
    set_table(draws)


if __name__ == "__main__":
    main()
