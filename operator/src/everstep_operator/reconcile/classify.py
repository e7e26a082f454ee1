"""Why a pod failed, in words that name the culprit: torchrun itself ends with code 1 whatever happened.

Asked in this order: the pod (evicted, deleted, its node lost), the container's reason (OOMKilled), the record that the
library left, torchrun's summary in the log, the exit code. Of several failed pods the first cause that is not a mere
consequence counts: a rank whose peer vanished fails too, and often its report comes first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from everstep import failure as failure_record
from everstep.exits import FENCED
from everstep_operator.api.status import Leaving
from everstep_operator.reconcile import signals, torchrun
from everstep_operator.reconcile.observation import NodeView, PodView

_PLAIN = ("Error", "Completed", "OOMKilled")
_WORD = re.compile(r"[^A-Za-z0-9]")

STOPPED = "Stopped"
"""Reason of a process that SIGTERM has ended."""
UNKNOWN = "Unknown"
"""Reason of a container whose end its runtime did not see, as of all that ran on a node that was restarted quickly."""
REJECTED = "Rejected"
"""Reason of a pod that never ran: its node had no disk or memory to spare. Kubelets say Evicted here as well."""
_REJECTED = "Pod was rejected: "
POD, ROOT, UNEXPLAINED, CONSEQUENCE = range(4)
"""How much a cause explains, the most first."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why an attempt failed. `code` is negative for a signal; `fault` is when it happened, as far as anybody knows."""

    reason: str
    message: str
    weight: int = POD
    pod: str | None = None
    node: str | None = None
    rank: int | None = None
    code: int | None = None
    fault: datetime | None = None
    reasons: frozenset[str] = frozenset()
    """All words by which a rule of the failure policy may name it."""
    conditions: frozenset[tuple[str, str]] = frozenset()
    """The pod's conditions as (type, status)."""


def done(pod: PodView) -> bool:
    """Whether the pod's trainer came to its good end, whatever its sidecars did or still do. Where it was made to stop,
    a code of 0 only says that it heeded SIGTERM."""
    if pod.phase == "Succeeded":
        return True
    stopped = pod.phase == "Failed" and (pod.reason is not None or is_disrupted(pod))
    return pod.container.exit_code == 0 and not stopped


def failed(pod: PodView) -> bool:
    """Whether the pod can do no more for its gang. A sidecar may keep it Running although its trainer has failed."""
    return (pod.phase == "Failed" and not done(pod)) or (pod.container.exit_code or 0) != 0


def is_disrupted(pod: PodView) -> bool:
    target = pod.condition("DisruptionTarget")
    return target is not None and target.status == "True"


def first(causes: Iterable[Cause]) -> Cause | None:
    """What explains most; of equals the earliest."""
    return min(causes, key=lambda c: (c.weight, c.fault.timestamp() if c.fault else 0.0), default=None)


def pod_failure(pod: PodView, log: str | None = None) -> Cause:
    """Of a pod that `failed`; `log` is its end, if it was read."""
    cause = _of_pod(pod) or _of_container(pod) or _of_process(pod, log)
    words = {cause.reason, pod.reason or "", pod.container.reason or ""} - {""}
    return replace(
        cause,
        pod=pod.name,
        node=pod.node,
        fault=cause.fault or pod.container.finished,
        reasons=frozenset(words),
        conditions=frozenset((c.type, c.status) for c in pod.conditions),
    )


def pod_gone(name: str, index: int, leaving: Leaving | None) -> Cause:
    """`leaving`: what was seen of a pod that somebody deletes."""
    if leaving is None or leaving.pod != name:
        return Cause("PodDeleted", f"pod {index} ({name}) was deleted", pod=name, reasons=frozenset({"PodDeleted"}))
    who = f"pod {index} ({name}){f' on {leaving.node}' if leaving.node else ''}"
    if leaving.reason is None:
        told = Cause("PodDeleted", f"{who} was deleted")
    else:
        told = Cause(leaving.reason, f"{who} was disrupted{_because(leaving.message)}")
    conditions = frozenset({("DisruptionTarget", "True")}) if leaving.reason else frozenset()
    reasons = frozenset({told.reason, "PodDeleted"})
    return replace(told, pod=name, node=leaving.node, reasons=reasons, conditions=conditions)


def node_lost(pods: Iterable[PodView], node: NodeView) -> Cause:
    names = ", ".join(pod.name for pod in pods)
    how = "is gone" if not node.exists else "stopped answering"
    pod = names.split(", ")[0]
    message = f"{node.name} {how}, with {names}"
    return Cause("NodeLost", message[:1024], pod=pod, node=node.name, reasons=frozenset({"NodeLost"}))


def _of_pod(pod: PodView) -> Cause | None:
    where = _where(pod)
    disruption = pod.condition("DisruptionTarget")
    if pod.reason == "Evicted" and (pod.message or "").startswith(_REJECTED):
        return Cause(REJECTED, f"{where} was turned away by its node{_because((pod.message or '')[len(_REJECTED) :])}")
    if pod.reason == "Evicted":
        return Cause("Evicted", f"{where} was evicted{_because(pod.message)}")
    if disruption is not None and disruption.status == "True":
        reason = disruption.reason or "DisruptionTarget"
        return Cause(reason, f"{where} was disrupted{_because(disruption.message)}", fault=disruption.since)
    if pod.reason == "NodeLost":
        return Cause("NodeLost", f"{where}: the node is lost")
    if pod.deleting:
        return Cause("PodDeleted", f"{where} was deleted")
    if pod.reason and pod.container.exit_code is None:
        return Cause(_word(pod.reason), f"{where} failed{_because(pod.message)}")
    return None


def _of_container(pod: PodView) -> Cause | None:
    reason = pod.container.reason
    if reason == "OOMKilled":
        return Cause("OOMKilled", f"{_where(pod)} ran out of memory", code=-9)
    if reason == UNKNOWN:
        return Cause(
            reason,
            f"{_where(pod)} ended unseen by its node, as at a restart of that",
            code=_code(pod.container.exit_code),
        )
    if reason and reason not in _PLAIN:
        return Cause(
            _word(reason), f"{_where(pod)} failed{_because(pod.container.message)}", code=_code(pod.container.exit_code)
        )
    return None


def _of_process(pod: PodView, log: str | None) -> Cause:
    message = pod.container.message
    found = failure_record.decode(message)
    is_log = found is None and failure_record.decode_mark(message) is None
    logs = [text for text in (log, message if is_log else None) if text]
    summary = next((read for text in logs if (read := torchrun.read_summary(text))), None)
    if found is not None and not (found.peer_lost and summary and _is_signal(summary.code)):
        return _of_record(pod, found)
    if summary is not None and summary.code is not None:
        return _of_summary(pod, summary, logs)
    return _of_exit_code(pod, logs)


def _of_record(pod: PodView, found: failure_record.FailureRecord) -> Cause:
    who = _where(pod, found.rank)
    code = found.exit_code
    weight = CONSEQUENCE if found.peer_lost or found.stopped else ROOT
    if found.stopped:
        reason, message = STOPPED, f"{who} was stopped by SIGTERM"
    elif found.signal:
        reason, message = found.signal, f"{who} was killed by {found.signal}{signals.hint(found.signal)}"
        number = signals.number(found.signal)
        code = -number if number is not None else code
    elif code == FENCED:
        reason, message = "Fenced", f"{who} was fenced{_because(found.message)}"
    else:
        name = found.exception or "Error"
        told = f"{name}: {found.message}" if found.message and found.message != name else name
        reason, message = _word(name), f"{who} failed: {_line(told)}"
    return Cause(reason, message, weight, rank=found.rank, code=_code(code), fault=found.time)


def _of_summary(pod: PodView, summary: torchrun.Summary, logs: list[str]) -> Cause:
    who = _where(pod, summary.rank)
    code = summary.code or 0
    if _is_signal(code):
        name = signals.name(-code)
        if name == "SIGTERM":
            return Cause(STOPPED, f"{who} was stopped by SIGTERM", CONSEQUENCE, rank=summary.rank, code=_code(code))
        return Cause(name, f"{who} was killed by {name}{signals.hint(name)}", ROOT, rank=summary.rank, code=_code(code))
    error = next((line for text in logs if (line := torchrun.last_error(text))), None) or summary.trace
    if error is None:
        return Cause("Error", f"{who} exited with code {code}", UNEXPLAINED, rank=summary.rank, code=_code(code))
    weight = CONSEQUENCE if is_consequence(error) else ROOT
    return Cause(
        _word(error.split(":")[0]), f"{who} failed: {_line(error)}", weight, rank=summary.rank, code=_code(code)
    )


def _of_exit_code(pod: PodView, logs: list[str]) -> Cause:
    who, container = _where(pod), pod.container
    code = container.exit_code
    error = next((line for text in logs if (line := torchrun.last_error(text))), None)
    if error is not None:
        weight = CONSEQUENCE if is_consequence(error) else ROOT
        return Cause(_word(error.split(":")[0]), f"{who} failed: {_line(error)}", weight, code=_code(code))
    if code is None:
        return Cause("Error", f"{who} failed{_because(pod.message)}", UNEXPLAINED)
    number = container.signal or signals.from_exit_code(code)
    if number is not None:
        name = signals.name(number)
        if name == "SIGTERM":
            return Cause(STOPPED, f"{who} was stopped by SIGTERM", CONSEQUENCE, code=_code(-number))
        return Cause(name, f"{who} was killed by {name}{signals.hint(name)}", ROOT, code=_code(-number))
    last = next((line for text in logs if (line := torchrun.last_line(text))), None)
    return Cause("Error", f"{who} exited with code {code}{_because(last)}", UNEXPLAINED, code=_code(code))


def _where(pod: PodView, rank: int | None = None) -> str:
    place = f" on {pod.node}" if pod.node else ""
    return f"rank {rank}{place}" if rank is not None else f"pod {pod.index} ({pod.name}){place}"


def _because(text: str | None) -> str:
    return f": {_line(text)}" if text and text.strip() else ""


def _line(text: str, most: int = 500) -> str:
    first_line = text.strip().splitlines()[0].rstrip(". ")
    return first_line if len(first_line) <= most else first_line[: most - 1] + "…"


def _word(text: str) -> str:
    """A CamelCase word for `reason`: the last part of a dotted name, without anything else."""
    word = _WORD.sub("", text.rsplit(".", 1)[-1])[:128]
    return word if word[:1].isalpha() else "Error"


def _is_signal(code: int | None) -> bool:
    return code is not None and code < 0


def _code(code: int | None) -> int | None:
    return code if code is not None and -255 <= code <= 255 else None


_PEER_SIGNS = ("closed by peer", "connection reset", "connection refused", "remote process exited", "broken pipe")


def is_consequence(error: str) -> bool:
    """Whether an error says that a peer went away first."""
    lowered = error.lower()
    return any(sign in lowered for sign in _PEER_SIGNS)
