"""Workers of this node that run the tasks and actors of other nodes.

What    A node that asks for a worker gets one that is free, with the resources it needs, and has
        it until it gives it back, or one of the two dies. Where only this node can do what it
        wants, it may wait its turn here. What our own tasks wait for is wanted back.
Caller  brokers/scheduler.py, brokers/loans.py.
Never   takes a worker from its borrower by itself: it asks for it.
Spec    docs/explanation/architecture.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .resources import Grant
from .scheduling import RUNNING, Claim, Environment, Kill, Lend, LoanLost, WantBack

if TYPE_CHECKING:
    from .scheduler import Scheduler

_PATIENCE_S = 0.005
"""Our own tasks have waited for so long: what is lent is wanted back."""
_WAIT_S = 1.0
"""A request that could not be met by then is refused: its node looks around again."""


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
    wanted_back: bool = False


class Lending:
    """What this scheduler has lent, and was asked for."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.loans: dict[bytes, Loan] = {}
        """By the worker."""
        self.asked: dict[bytes, Asked] = {}
        """By the name of the claim that stands for it."""
        self._short_since = 0.0

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
        """BORROW: a worker, now or in a moment, or no."""
        scheduler = self.scheduler
        if patient:
            waits = any(
                asked.borrower == borrower and not self._fits(asked_name)
                for asked_name, asked in self.asked.items()
            )
            shortage = scheduler.resources.shortage
            refused = waits or bool(shortage(placement)) or bool(shortage(resources))
        else:
            refused = (
                bool(scheduler.claims)
                or bool(scheduler.queues.task_count)
                or not (scheduler.resources.fits(placement) and scheduler.resources.fits(resources))
            )
        if refused or scheduler.is_stopping or not scheduler.runs_work:
            scheduler.commands.append(Lend(borrower, number, None))
            return
        name = borrower + number.to_bytes(8, "big")
        self.asked[name] = Asked(borrower, number, now + _WAIT_S, for_actor)
        scheduler.claim(Claim(name, placement, resources, env, is_loan=True))
        scheduler.pump()

    def _fits(self, name: bytes) -> bool:
        return any(
            claim.actor == name and self.scheduler.claim_fits_here(claim)
            for claim in self.scheduler.claims
        )

    def lend(self, claim: Claim, worker: bytes, grant: Grant) -> None:
        """The scheduler has a worker for a request."""
        asked = self.asked.pop(claim.actor)
        self.loans[worker] = Loan(asked.borrower, asked.for_actor)
        self.scheduler.commands.append(Lend(asked.borrower, asked.number, worker, grant.gpu_ids))

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
        missing = self._missing() if self.loans else 0
        if not missing:
            self._short_since = now
        elif now - self._short_since >= _PATIENCE_S:
            self._recall(missing)

    def _missing(self) -> int:
        """Return how many workers our own work, and who waits here, could use at once."""
        scheduler = self.scheduler
        missing = sum(not scheduler.claim_fits_here(claim) for claim in scheduler.claims)
        for shape in scheduler.queues.shapes_waiting():
            may = scheduler.borrowing.may_run_here(shape.where, shape.amounts)
            if may and not scheduler.resources.fits(shape.amounts):
                missing += scheduler.queues.counts[shape]
        return missing

    def _recall(self, missing: int) -> None:
        missing -= sum(loan.wanted_back for loan in self.loans.values())
        for worker, loan in self.loans.items():
            if missing <= 0:
                return
            if not loan.wanted_back and not loan.for_actor:
                loan.wanted_back = True
                missing -= 1
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
