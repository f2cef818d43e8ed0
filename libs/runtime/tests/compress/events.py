"""One step as events follow one another: a processor, an exchange's thread and a link, each with its own work.

It shares nothing with the controller's own reckoning of a step (`control.timing`), so that errors of that show.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from distroml.runtime.compress.control import Link, Offer, Setting


@dataclass(frozen=True, slots=True)
class Happened:
    """One step: all its seconds, and for each bucket those for which computing waited."""

    step_s: float
    exposed_s: tuple[float, ...]


def happen(setting: Setting, link: Link, compute_s: float, offers: Sequence[Offer]) -> Happened:
    """Let a step happen.

    The exchange's thread takes buckets in order, each once computing has come to where its gradients are there. Each
    round is encoded, travels, and is decoded; while the thread codes and shares its core, both go at half speed.
    """
    now = done_s = computed_at = 0.0
    ended: list[float] = []
    # What the thread still does: until computing has come so far, code for so long, or wait for the wire so long.
    work: deque[tuple[str, float]] = deque()
    for bucket, offer in zip(setting.buckets, offers, strict=True):
        work.append(("gradients", bucket.ready * compute_s))
        for _ in range(offer.rounds):
            work.append(("code", offer.codec_s / offer.rounds / 2))
            work.append(("wire", link.latency_s + offer.sent_bytes / offer.rounds * link.s_per_byte))
            work.append(("code", offer.codec_s / offer.rounds / 2))
        work.append(("end", 0.0))
    while work or done_s < compute_s:
        kind, amount = work[0] if work else ("nothing", math.inf)
        if kind == "gradients" and done_s >= amount * (1 - 1e-12):
            work.popleft()
            continue
        if kind == "end":
            ended.append(now)
            work.popleft()
            continue
        computes = done_s < compute_s
        shares = kind == "code" and computes and setting.codec_slows > 0.5
        speed = 0.5 if shares else 1.0
        left_s = (compute_s - done_s) / speed if computes else math.inf
        thread_s = (amount - done_s if kind == "gradients" else amount) / speed
        passed_s = min(left_s, thread_s)
        now += passed_s
        if computes:
            done_s = compute_s if left_s <= thread_s else done_s + passed_s * speed
            computed_at = now
        if kind in ("code", "wire"):
            rest_s = amount - passed_s * speed
            if thread_s <= left_s:
                work.popleft()
            else:
                work[0] = (kind, rest_s)
    waited_to = computed_at
    exposed: list[float] = []
    for end in ended:
        exposed.append(max(0.0, end - waited_to))
        waited_to = max(waited_to, end)
    return Happened(waited_to, tuple(exposed))
