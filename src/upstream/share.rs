//! The clients on whose behalf one upstream is asked: who has a share of its quota, and who is silent.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Who has asked so recently counts when the quota is shared out.
pub const RECENT: Duration = Duration::from_secs(30 * 60);
/// Who was silent for so long has stopped asking,
const SILENT: Duration = Duration::from_secs(10 * 60);
/// and after so long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(24 * 3600);
/// Remembered at most. Who is forgotten has taken nothing: one who commands so many addresses is held by
/// no share.
const CLIENTS_MAX: usize = 4096;
/// Named at most where somebody is suspected.
const NAMED: usize = 5;
/// Who has asked less often did not use to ask.
const REGULAR: u64 = 2;

#[derive(Default)]
pub struct Clients {
    known: HashMap<String, Visits>,
    /// By all of them, forgotten ones too, since the quota became scarce.
    taken: u64,
    /// How often it was shared out before.
    pot: u64,
}

/// A pull that a client has taken.
#[derive(Debug)]
pub struct Taken {
    client: String,
    pot: u64,
}

struct Visits {
    last: Instant,
    /// Priority clients need none.
    has_share: bool,
    asked: u64,
    taken: u64,
}

/// A share that is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedUp {
    pub share: u64,
    /// Among so many it is shared out.
    pub clients: u64,
}

impl Clients {
    /// A client has asked for something, held here or not.
    pub fn saw(&mut self, client: &str, has_share: bool, now: Instant) {
        if let Some(visits) = self.known.get_mut(client) {
            (visits.last, visits.asked, visits.has_share) = (now, visits.asked.saturating_add(1), has_share);
            return;
        }
        if self.known.len() >= CLIENTS_MAX {
            self.forget(now);
        }
        self.known.insert(client.to_owned(), Visits { last: now, has_share, asked: 1, taken: 0 });
    }

    /// Who has not asked for a day; where that is not enough, the quarter that has not for longest.
    fn forget(&mut self, now: Instant) {
        self.known.retain(|_, visits| now.saturating_duration_since(visits.last) < FORGOTTEN);
        if self.known.len() >= CLIENTS_MAX {
            let mut times: Vec<Instant> = self.known.values().map(|visits| visits.last).collect();
            let (_, limit, _) = times.select_nth_unstable(CLIENTS_MAX / 4);
            let limit = *limit;
            self.known.retain(|_, visits| visits.last > limit);
        }
    }

    /// Whether a client may take one of the `left` pulls. The pot is what was left when the quota became
    /// scarce, and everybody who asked of late has an equal part of it.
    pub fn may_take(&self, client: &str, left: u64, now: Instant) -> Result<(), UsedUp> {
        let counts =
            |visits: &Visits| visits.has_share && now.saturating_duration_since(visits.last) < RECENT;
        let others = self.known.iter().filter(|(name, visits)| *name != client && counts(visits)).count();
        let clients = others as u64 + 1;
        let share = left.saturating_add(self.taken).div_ceil(clients);
        let taken = self.known.get(client).map_or(0, |visits| visits.taken);
        if taken < share { Ok(()) } else { Err(UsedUp { share, clients }) }
    }

    pub fn take(&mut self, client: &str) -> Taken {
        self.taken = self.taken.saturating_add(1);
        if let Some(visits) = self.known.get_mut(client) {
            visits.taken = visits.taken.saturating_add(1);
        }
        Taken { client: client.to_owned(), pot: self.pot }
    }

    /// Nothing came of it.
    pub fn give_back(&mut self, Taken { client, pot }: Taken) {
        if pot != self.pot {
            return;
        }
        self.taken = self.taken.saturating_sub(1);
        if let Some(visits) = self.known.get_mut(&client) {
            visits.taken = visits.taken.saturating_sub(1);
        }
    }

    /// There is enough again.
    pub fn start_over(&mut self) {
        if self.taken > 0 {
            (self.taken, self.pot) = (0, self.pot.wrapping_add(1));
            self.known.values_mut().for_each(|visits| visits.taken = 0);
        }
    }

    /// Who used to ask and stopped, the busiest first.
    pub fn silent(&self, now: Instant) -> Vec<String> {
        let silent = |visits: &Visits| {
            let rest = now.saturating_duration_since(visits.last);
            visits.asked >= REGULAR && (SILENT..FORGOTTEN).contains(&rest)
        };
        let mut silent: Vec<_> = self.known.iter().filter(|(_, visits)| silent(visits)).collect();
        silent.sort_by(|(one, of_one), (other, of_other)| {
            of_other.asked.cmp(&of_one.asked).then_with(|| one.cmp(other))
        });
        silent.into_iter().take(NAMED).map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// How many of `left` a client takes when nobody else takes any.
    fn drain(clients: &mut Clients, client: &str, left: &mut u64, now: Instant) -> u64 {
        let before = *left;
        while *left > 0 && clients.may_take(client, *left, now).is_ok() {
            clients.take(client);
            *left -= 1;
        }
        before - *left
    }

    #[test]
    fn a_greedy_client_leaves_the_others_theirs() {
        let (mut clients, now, mut left) = (Clients::default(), Instant::now(), 10);
        for client in ["greedy", "a", "b", "c", "d"] {
            clients.saw(client, true, now);
        }
        assert_eq!(drain(&mut clients, "greedy", &mut left, now), 2);
        assert_eq!(clients.may_take("greedy", left, now), Err(UsedUp { share: 2, clients: 5 }));
        for client in ["a", "b", "c", "d"] {
            assert_eq!(drain(&mut clients, client, &mut left, now), 2, "{client}");
        }
        assert_eq!(left, 0);
        clients.start_over();
        assert_eq!(clients.may_take("greedy", 10, now), Ok(()));
    }

    #[test]
    fn who_is_alone_may_take_all_and_who_is_silent_has_no_share() {
        let (mut clients, now, mut left) = (Clients::default(), Instant::now(), 12);
        clients.saw("one", true, now);
        clients.saw("other", true, now);
        assert_eq!(drain(&mut clients, "one", &mut left, now), 6);
        let later = now + RECENT;
        clients.saw("one", true, later);
        assert_eq!(drain(&mut clients, "one", &mut left, later), 6);
    }

    #[test]
    fn priority_clients_take_no_part() {
        let (mut clients, now, mut left) = (Clients::default(), Instant::now(), 10);
        clients.saw("one", true, now);
        clients.saw("other", true, now);
        clients.saw("first", false, now);
        assert_eq!(drain(&mut clients, "one", &mut left, now), 5);
    }

    #[test]
    fn more_clients_than_pulls_have_one_each_while_there_are_any() {
        let (mut clients, now) = (Clients::default(), Instant::now());
        (0..200).for_each(|number| clients.saw(&number.to_string(), true, now));
        let mut left = 10;
        assert_eq!(drain(&mut clients, "7", &mut left, now), 1);
        assert_eq!(drain(&mut clients, "8", &mut left, now), 1);
        assert_eq!(clients.may_take("never seen", left, now), Ok(()));
    }

    #[test]
    fn who_stopped_asking_is_named_the_busiest_first() {
        let (mut clients, now) = (Clients::default(), Instant::now());
        let ask = |clients: &mut Clients, client: &str, times: usize, at| {
            (0..times).for_each(|_| clients.saw(client, true, at));
        };
        ask(&mut clients, "once", 1, now);
        ask(&mut clients, "some", 3, now);
        ask(&mut clients, "busy", 30, now);
        assert!(clients.silent(now).is_empty());
        let later = now + SILENT;
        ask(&mut clients, "there", 99, later);
        assert_eq!(clients.silent(later), ["busy", "some"]);
        assert!(clients.silent(now + FORGOTTEN).iter().all(|name| name == "there"));
        (0..99).for_each(|number| ask(&mut clients, &number.to_string(), 5, now));
        assert_eq!(clients.silent(later).len(), NAMED);
    }

    #[test]
    fn memory_is_bounded_and_keeps_who_came_last() {
        let (mut clients, now) = (Clients::default(), Instant::now());
        for number in 0..3 * CLIENTS_MAX {
            clients.saw(&number.to_string(), true, now + Duration::from_millis(number as u64));
            assert!(clients.known.len() <= CLIENTS_MAX);
        }
        assert!(clients.known.contains_key(&(3 * CLIENTS_MAX - 1).to_string()));
        // All of them at the same moment, too.
        let at = now + MINUTE * 60;
        (0..2 * CLIENTS_MAX).for_each(|number| clients.saw(&format!("same {number}"), true, at));
        assert!(clients.known.len() <= CLIENTS_MAX);
    }

    proptest! {
        /// However they take turns: nobody gets more than its part, and nothing is left over while
        /// somebody who has had less wants it.
        #[test]
        fn shares_are_equal_and_use_up_the_pot(pot in 0u64..60, turns in prop::collection::vec(0usize..5, 0..200)) {
            let (mut clients, now, mut left, mut taken) = (Clients::default(), Instant::now(), pot, [0; 5]);
            (0..5).for_each(|client| clients.saw(&client.to_string(), true, now));
            for client in turns.into_iter().chain((0..300).map(|turn| turn % 5)) {
                let name = client.to_string();
                if left > 0 && clients.may_take(&name, left, now).is_ok() {
                    clients.take(&name);
                    (left, taken[client]) = (left - 1, taken[client] + 1);
                }
            }
            prop_assert_eq!(left, 0);
            prop_assert!(taken.iter().all(|taken| *taken <= pot.div_ceil(5)), "{:?}", taken);
        }
    }
}
