//! What may be asked for and spent: each pull asks here before it begins.

use std::sync::atomic::Ordering;

use super::budget::{self, Budget, HeldBack, Verdict};
use super::quota::Quota;
use super::share::Taken;
use super::{Cause, Identity, Purpose, Spender};
use crate::metrics::{Held, Saving};
use crate::tasks::lock;

/// A pull under way. Dropped, it has come to nothing.
pub struct Spending<'a> {
    quota: &'a Quota,
    /// Of its client's share, until that is spent.
    taken: Option<Taken>,
    has_ended: bool,
}

impl<'a> Spending<'a> {
    fn begin(quota: &'a Quota, budget: &mut Budget, spender: &Spender) -> Self {
        Self { quota, taken: budget.begin(spender, quota.clock.now()), has_ended: false }
    }

    /// What was asked for is on its way: that is charged.
    pub fn is_given(&mut self) {
        self.taken = None;
    }

    /// The pull was answered.
    pub fn end(mut self, budget: &mut Budget, is_charged: bool) {
        if is_charged {
            self.taken = None;
        }
        self.close(budget);
    }

    fn close(&mut self, budget: &mut Budget) {
        self.has_ended = true;
        budget.end();
        self.taken.take().into_iter().for_each(|taken| budget.give_back(taken));
        self.quota.ended.notify_waiters();
    }
}

impl Drop for Spending<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            let quota = self.quota;
            self.close(&mut lock(&quota.state).budget);
        }
    }
}

impl Quota {
    /// A client has asked for a manifest of this upstream, held here or not.
    pub fn saw(&self, purpose: Purpose, client: impl FnOnce() -> Option<String>) {
        if self.is_told.load(Ordering::Relaxed)
            && let Some(client) = client()
        {
            lock(&self.state).budget.saw(&client, purpose, self.clock.now());
        }
    }

    /// A client got a manifest without a pull.
    pub fn saved(&self, saving: Saving) {
        self.metrics.budget.saved.cell(saving).inc();
    }

    /// Whether no pull is begun at all now.
    pub fn paused(&self, identity: Identity) -> Option<HeldBack> {
        let why = budget::EXHAUSTED.to_owned();
        self.gets_paused(identity).map(|wait| HeldBack { what: Held::Miss, why, wait })
    }

    /// Why a pull of this kind would not be begun now.
    pub fn holds_back(&self, identity: Identity, purpose: Purpose) -> Option<HeldBack> {
        if identity != self.pulls_as {
            return None;
        }
        let spender = Spender { purpose, client: None };
        match lock(&self.state).budget.verdict(&spender, self.clock.now()) {
            Verdict::HeldBack(held) => Some(held),
            Verdict::Pass | Verdict::Wait => None,
        }
    }

    /// Why what is held is not confirmed now by a HEAD. Now and then one goes out nevertheless: it costs
    /// nothing, and its answer tells what is left.
    pub fn holds_back_head(&self, identity: Identity, purpose: Purpose) -> Option<HeldBack> {
        if identity != self.pulls_as {
            return None;
        }
        let spender = Spender { purpose, client: None };
        let now = self.clock.now();
        let mut state = lock(&self.state);
        let Verdict::HeldBack(held) = state.budget.verdict(&spender, now) else { return None };
        if state.budget.needs_word(&spender, now) {
            state.budget.look(now);
            return None;
        }
        self.metrics.budget.held_back.cell(held.what).inc();
        Some(held)
    }

    /// Where a decision needs a newer word, asks for one by `head`, once for all who wait.
    pub async fn renewed(&self, identity: Identity, spender: &Spender, head: impl Future<Output = ()>) {
        let needs_word =
            || identity == self.pulls_as && lock(&self.state).budget.needs_word(spender, self.clock.now());
        if !needs_word() {
            return;
        }
        let _looking = self.looking.lock().await;
        if needs_word() {
            head.await;
            lock(&self.state).budget.look(self.clock.now());
        }
    }

    /// A pull begins, or may not. What is under way is waited for where it decides.
    pub async fn spend(&self, identity: Identity, spender: &Spender) -> Result<Option<Spending<'_>>, Cause> {
        if identity != self.pulls_as {
            return Ok(None);
        }
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            {
                let now = self.clock.now();
                let mut state = lock(&self.state);
                match state.budget.verdict(spender, now) {
                    Verdict::Pass => {
                        return Ok(Some(Spending::begin(self, &mut state.budget, spender)));
                    }
                    Verdict::HeldBack(held) => {
                        self.metrics.budget.held_back.cell(held.what).inc();
                        return Err(Cause::HeldBack(held));
                    }
                    Verdict::Wait => {}
                }
            }
            // Every request has its time limit, and so has what is waited for here.
            ended.await;
        }
    }

    /// The same pull once more, because its answer broke off.
    pub fn spend_again(&self, identity: Identity, spender: &Spender) -> Option<Spending<'_>> {
        (identity == self.pulls_as).then(|| Spending::begin(self, &mut lock(&self.state).budget, spender))
    }
}
