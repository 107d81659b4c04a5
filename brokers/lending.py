"""Workers of this node that run the tasks and actors of other nodes.

What    A node that asks for a worker gets one that is free, with the resources it needs, and has
        it until it gives it back, or one of the two dies. Where only this node can do what it
        wants, it may wait its turn here. What our own tasks wait for is wanted back.
Caller  brokers/scheduler.py, brokers/loans.py.
Never   takes a worker from its borrower by itself: it asks for it.
Spec    docs/explanation/architecture.md.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zray.errors import RemoteProtocolError

from .bundles import group_of
from .resources import Grant
from .scheduling import RUNNING, Claim, Environment, Kill, Lend, LoanLost, WantBack

if TYPE_CHECKING:
    from .scheduler import Scheduler

_PATIENCE_S = 0.005
"""Our own tasks have waited for so long: what is lent is wanted back."""
_IDLE_ASKED_S = 0.01
"""What others could use is asked of its borrowers at most so often."""
_WAIT_S = 1.0
"""A request that could not be met by then is refused: its node looks around again."""


Missing = dict[bytes, Counter[bytes]]
"""How many workers are missing: by the placement group they are of, since what is lent of a bundle
helps nobody outside of it, and by who could use them: other nodes, or (b"") this one."""
_OURS = b""


@dataclass(slots=True)
class Asked:
    """A request that waits for a worker."""

    borrower: bytes
    number: int
    until: float
    for_actor: bool


@dataclass(slots=True)
class Loan:
    """A worker of ours that works for another node."""

    borrower: bytes
    for_actor: bool
    group: bytes
    """The placement group whose bundle it draws from, b"" for none."""
    wanted_back: bool = False

    def would_help(self, missing: Missing) -> bool:
        """Return whether its end is of use to somebody else than who has it."""
        askers = missing.get(self.group)
        return not self.for_actor and askers is not None and askers.keys() != {self.borrower}


class Lending:
    """What this scheduler has lent, and was asked for."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.loans: dict[bytes, Loan] = {}
        """By the worker."""
        self.asked: dict[bytes, Asked] = {}
        """By the name of the claim that stands for it."""
        self.given = 0
        """Workers lent so far."""
        self._short_since = 0.0
        self._idle_asked_at = 0.0
        self.is_leaving = False
        """This node drains: it takes no work, if there is anybody else to do it."""

    # -- requests --------------------------------------------------------------------------------

    def borrow(
        self,
        borrower: bytes,
        number: int,
        placement: dict[str, int],
        resources: dict[str, int],
        env: Environment,
        *,
        for_actor: bool,
        patient: bool,
        now: float,
    ) -> None:
        """BORROW: a worker, now or in a moment, or no.

        Raises RemoteProtocolError where the number is that of a request that still waits.
        """
        scheduler = self.scheduler
        name = borrower + number.to_bytes(8, "big")
        if name in self.asked:
            raise RemoteProtocolError(f"BORROW {number} of {borrower.hex()}, which waits already")
        if patient:
            waits = any(
                asked.borrower == borrower and not self._fits(asked_name)
                for asked_name, asked in self.asked.items()
            )
            shortage = scheduler.resources.shortage
            refused = waits or bool(shortage(placement)) or bool(shortage(resources))
        else:
            fits = scheduler.resources.fits(placement) and scheduler.resources.fits(resources)
            # What is reserved for a placement group is nobody's turn to wait for.
            waits = not group_of(resources) and bool(
                scheduler.claims or scheduler.queues.task_count
            )
            refused = waits or not fits
        if refused or scheduler.is_stopping or not scheduler.takes_work:
            scheduler.commands.append(Lend(borrower, number, None))
            scheduler.offering.refused(borrower, now)
            self._ask_for_idle({group_of(resources): Counter([borrower])}, now)
            return
        self.asked[name] = Asked(borrower, number, now + _WAIT_S, for_actor)
        scheduler.claim(Claim(name, placement, resources, env, is_loan=True))
        scheduler.pump()

    def _ask_for_idle(self, missing: Missing, now: float) -> None:
        """Somebody could use at once what lies idle with those who have borrowed it."""
        if now < self._idle_asked_at + _IDLE_ASKED_S:
            return
        self._idle_asked_at = now
        for worker, loan in self.loans.items():
            if not loan.wanted_back and loan.would_help(missing):
                self.scheduler.commands.append(WantBack(loan.borrower, worker, if_idle=True))

    def _fits(self, name: bytes) -> bool:
        return any(
            claim.actor == name and self.scheduler.claim_fits_here(claim)
            for claim in self.scheduler.claims
        )

    def lend(self, claim: Claim, worker: bytes, grant: Grant) -> None:
        """The scheduler has a worker for a request."""
        asked = self.asked.pop(claim.actor)
        self.given += 1
        self.loans[worker] = Loan(asked.borrower, asked.for_actor, group_of(claim.resources))
        self.scheduler.commands.append(Lend(asked.borrower, asked.number, worker, grant.gpu_ids))

    def leave(self, *, leaving: bool) -> None:
        """This node drains, or stays after all: then what waits may run here again."""
        self.is_leaving = leaving
        if not leaving:
            for loan in self.loans.values():
                loan.wanted_back = False
            self.scheduler.pump()

    def recall_all(self) -> None:
        """Ask for all that is lent; an actor comes back by starting again elsewhere."""
        for worker, loan in self.loans.items():
            if not loan.wanted_back:
                loan.wanted_back = True
                self.scheduler.commands.append(WantBack(loan.borrower, worker))

    # -- the end of a loan -----------------------------------------------------------------------

    def is_lent_to(self, borrower: bytes, worker: bytes) -> bool:
        """Return whether this node is who this worker works for."""
        loan = self.loans.get(worker)
        return loan is not None and loan.borrower == borrower

    def given_back(self, borrower: bytes, worker: bytes, *, spent: bool) -> None:
        """GIVE_BACK: it has nothing to do; spent: and is to do nothing else."""
        if self.is_lent_to(borrower, worker):
            del self.loans[worker]
            self.scheduler.returned(worker, spent=spent)

    def end(self, borrower: bytes, worker: bytes) -> None:
        """END_WORKER: its borrower wants it dead. The loan ends with the worker."""
        if self.is_lent_to(borrower, worker):
            self._kill(worker, "the node that had borrowed it ended it")

    def node_lost(self, node: bytes) -> None:
        """Nobody knows what the workers of a dead borrower are in the middle of: they end."""
        for worker, loan in list(self.loans.items()):
            if loan.borrower == node:
                del self.loans[worker]
                self._kill(worker, "the node that had borrowed it is gone")
        for name, asked in list(self.asked.items()):
            if asked.borrower == node:
                del self.asked[name]
                self.scheduler.withdraw(name)

    def _kill(self, worker: bytes, reason: str) -> None:
        state = self.scheduler.workers.get(worker)
        if state is not None:
            state.blameless = state.retiring = True
            self.scheduler.commands.append(Kill(worker, reason))

    def worker_died(self, worker: bytes, reason: str) -> None:
        """A worker of ours has died: who has borrowed it is told."""
        loan = self.loans.pop(worker, None)
        if loan is not None:
            self.scheduler.commands.append(LoanLost(loan.borrower, worker, reason))

    # -- time ------------------------------------------------------------------------------------

    @property
    def needs_tick(self) -> bool:
        """Whether somebody waits."""
        return bool(self.asked) or bool(self.loans and self.scheduler.queues.task_count)

    def tick(self, now: float) -> None:
        """Refuse what has waited for too long; ask for what our own work waits for."""
        for name, asked in list(self.asked.items()):
            if now > asked.until:
                del self.asked[name]
                self.scheduler.withdraw(name)
                self.scheduler.commands.append(Lend(asked.borrower, asked.number, None))
        missing = self._missing() if self.loans else None
        if not missing:
            self._short_since = now
            return
        self._ask_for_idle(missing, now)
        if now - self._short_since >= _PATIENCE_S:
            self._recall(missing)

    def _missing(self) -> Missing:
        """Return what our own work, and who waits here, could use at once."""
        scheduler = self.scheduler
        missing: Missing = {}
        for claim in scheduler.claims:
            if not scheduler.claim_fits_here(claim):
                asker = self.asked[claim.actor].borrower if claim.is_loan else _OURS
                missing.setdefault(group_of(claim.resources), Counter())[asker] += 1
        for shape in scheduler.queues.shapes_waiting():
            may = scheduler.borrowing.may_run_here(shape.where, shape.amounts)
            if may and not scheduler.resources.fits(shape.amounts):
                count = scheduler.queues.counts[shape]
                missing.setdefault(shape.where.group, Counter())[_OURS] += count
        return missing

    def _recall(self, missing: Missing) -> None:
        left = {group: askers.total() for group, askers in missing.items()}
        for loan in self.loans.values():
            if loan.wanted_back and loan.group in left:
                left[loan.group] -= 1
        for worker, loan in self.loans.items():
            wanted = not loan.wanted_back and loan.would_help(missing)
            if wanted and left[loan.group] > 0:
                loan.wanted_back = True
                left[loan.group] -= 1
                self.scheduler.commands.append(WantBack(loan.borrower, worker))

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        workers = self.scheduler.workers
        for worker in self.loans:
            state = workers[worker]
            assert state.state == RUNNING
            assert state.grant is not None, "lent without resources"
            assert not state.pooled, "lent, and in the pool"
            assert not state.outstanding, "a task of ours at a worker that is lent"
        waiting = {claim.actor for claim in self.scheduler.claims if claim.is_loan}
        assert waiting == set(self.asked), "a request that nobody waits for, or the other way"
