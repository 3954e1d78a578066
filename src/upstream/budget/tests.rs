use super::*;

const MINUTE: Duration = Duration::from_secs(60);
const WINDOW: Duration = Duration::from_secs(6 * 3600);

fn told(limit: u64, remaining: u64) -> Told {
    Told { limit: Some(limit), remaining: Some(remaining), window: Some(WINDOW) }
}

fn of(purpose: Purpose) -> Spender {
    Spender { purpose, client: None }
}

fn by(client: &str) -> Spender {
    Spender { purpose: Purpose::Miss, client: Some(client.to_owned()) }
}

/// A budget that was told of so much at `now`.
fn budget(options: Options, limit: u64, remaining: u64) -> (Budget, Instant) {
    let (mut budget, now) = (Budget::new(options), Instant::now());
    budget.note(now, now, told(limit, remaining), Some("192.0.2.1"));
    (budget, now)
}

fn reserved() -> Options {
    Options { has_priority: true, ..Options::default() }
}

/// The smallest number left at which each purpose still passes.
fn last_passing(options: &Options, limit: u64) -> [u64; 4] {
    use Purpose::{Background, Miss, Priority, Revalidation};
    [Background, Revalidation, Miss, Priority].map(|purpose| {
        let passes = |left: &u64| {
            let (budget, now) = budget(options.clone(), limit, *left);
            budget.verdict(&of(purpose), now) == Verdict::Pass
        };
        (0..=limit).find(passes).unwrap_or(u64::MAX)
    })
}

#[test]
fn background_work_stops_first_then_revalidation_then_misses() {
    assert_eq!(last_passing(&reserved(), 100), [38, 20, 11, 0]);
    assert_eq!(last_passing(&reserved(), 20), [9, 5, 3, 0]);
    let with = |reserve| Options { reserve, ..reserved() };
    assert_eq!(last_passing(&with(Reserve::Pulls(25)), 100), [49, 34, 26, 0]);
    assert_eq!(last_passing(&with(Reserve::Pulls(0)), 100), [31, 11, 0, 0]);
    // All of it is kept.
    assert_eq!(last_passing(&with(Reserve::Pulls(500)), 100), [u64::MAX, u64::MAX, u64::MAX, 0]);
    assert_eq!(Reserve::Percent(100).of(u64::MAX), u64::MAX);
}

#[test]
fn a_reserve_that_is_for_nobody_stops_no_miss() {
    assert_eq!(last_passing(&Options::default(), 100), [38, 20, 0, 0]);
}

#[test]
fn what_is_not_told_holds_nothing_back() {
    let (mut budget, now) = (Budget::new(reserved()), Instant::now());
    assert_eq!(budget.verdict(&of(Purpose::Background), now), Verdict::Pass);
    budget.note(now, now, Told { limit: Some(100), ..Told::default() }, None);
    assert_eq!(budget.verdict(&of(Purpose::Background), now), Verdict::Pass);
    // What is left, without the limit: a share of it is not known to be gone.
    budget.note(now, now, Told { remaining: Some(3), ..Told::default() }, None);
    assert_eq!(budget.verdict(&of(Purpose::Miss), now), Verdict::Pass);
}

#[test]
fn refusals_say_why_and_when() {
    let (budget, now) = budget(reserved(), 100, 7);
    let Verdict::HeldBack(held) = budget.verdict(&of(Purpose::Miss), now) else { panic!("passed") };
    assert_eq!((held.what, held.wait), (Held::Miss, RETRY));
    for part in ["last 10 of the upstream's 100 pulls", "priority clients and pinned images", "7 are left"] {
        assert!(held.why.contains(part), "{}", held.why);
    }
    let nearly = now + WINDOW - MINUTE * 5;
    let Verdict::HeldBack(held) = budget.verdict(&of(Purpose::Miss), nearly) else { panic!("passed") };
    assert_eq!(held.wait, MINUTE * 5);
    assert_eq!(budget.verdict(&of(Purpose::Miss), now + WINDOW), Verdict::Pass, "forgotten with its window");
}

#[test]
fn pulls_under_way_are_waited_for_and_never_taken_for_free() {
    let (mut budget, now) = budget(reserved(), 20, 5);
    let miss = of(Purpose::Miss);
    // Two are the reserve: three may be begun.
    for _ in 0..3 {
        assert_eq!(budget.verdict(&miss, now), Verdict::Pass);
        budget.begin(&miss, now);
    }
    assert_eq!(budget.verdict(&miss, now), Verdict::Wait);
    assert_eq!(budget.verdict(&of(Purpose::Priority), now), Verdict::Pass);
    // One was free, as a 404 may be; the others are charged.
    budget.end();
    budget.note(now, now, told(20, 5), None);
    assert_eq!(budget.verdict(&miss, now), Verdict::Pass, "two under way, five left");
    budget.begin(&miss, now);
    assert_eq!(budget.verdict(&miss, now), Verdict::Wait);
    budget.end();
    assert_eq!(budget.verdict(&miss, now), Verdict::Pass, "one came to nothing");
    for left in [3, 2] {
        budget.end();
        budget.note(now, now, told(20, left), None);
    }
    assert!(matches!(budget.verdict(&miss, now), Verdict::HeldBack(_)));
}

#[test]
fn background_work_waits_in_nobody_s_place() {
    let (mut budget, now) = budget(Options::default(), 20, 10);
    (0..2).for_each(|_| drop(budget.begin(&of(Purpose::Miss), now)));
    assert!(matches!(budget.verdict(&of(Purpose::Background), now), Verdict::HeldBack(_)));
    (0..2).for_each(|_| budget.end());
    assert_eq!(budget.verdict(&of(Purpose::Background), now), Verdict::Pass);
}

#[test]
fn answers_that_were_overtaken_are_older_words() {
    let (mut budget, start) = budget(reserved(), 20, 20);
    let at = |seconds| start + Duration::from_secs(seconds);
    let remaining = |budget: &Budget| budget.told(at(9)).and_then(|told| told.remaining);
    budget.note(at(2), at(1), told(20, 17), None);
    budget.note(at(3), at(1), told(20, 18), None);
    assert_eq!(remaining(&budget), Some(17));
    budget.note(at(3), at(1), told(20, 16), None);
    assert_eq!(remaining(&budget), Some(16));
    let began = budget.window(at(4)).unwrap().ends(WINDOW);
    // What was sent after the last word came is news, whatever it tells.
    budget.note(at(6), at(5), told(20, 20), None);
    assert_eq!(remaining(&budget), Some(20));
    assert!(budget.window(at(6)).unwrap().ends(WINDOW) > began, "another window has begun");
}

#[test]
fn a_greedy_client_is_stopped_while_the_quota_is_scarce_only() {
    let (mut budget, now) = budget(Options::default(), 20, 20);
    ["greedy", "a", "b", "c"].iter().for_each(|client| budget.saw(client, Purpose::Miss, now));
    let mut left = 20;
    let mut pull = |budget: &mut Budget, client: &str| {
        if budget.verdict(&by(client), now) != Verdict::Pass {
            return false;
        }
        budget.begin(&by(client), now);
        left -= 1;
        budget.end();
        budget.note(now, now, told(20, left), None);
        true
    };
    let had = (0..20).filter(|_| pull(&mut budget, "greedy")).count();
    assert_eq!(had, 10 + 3, "half of it, and its share of the other half");
    let Verdict::HeldBack(held) = budget.verdict(&by("greedy"), now) else { panic!("passed") };
    assert!(held.what == Held::Share && held.why.contains("4 clients"), "{held:?}");
    for client in ["a", "b"] {
        assert_eq!((0..9).filter(|_| pull(&mut budget, client)).count(), 3, "{client}");
    }
    assert!(pull(&mut budget, "c"), "the last one");
    assert_eq!(
        budget.verdict(&by("c"), now),
        Verdict::Pass,
        "of nothing, there is no share: the upstream decides"
    );
    let mut unfair = Budget::new(Options { fair_share: false, ..Options::default() });
    unfair.note(now, now, told(20, 1), None);
    ["greedy", "a"].iter().for_each(|client| unfair.saw(client, Purpose::Miss, now));
    unfair.begin(&by("greedy"), now);
    assert_eq!(unfair.verdict(&by("greedy"), now), Verdict::Pass);
}

#[test]
fn what_was_not_charged_is_given_back() {
    let (mut budget, now) = budget(Options::default(), 20, 4);
    ["one", "other"].iter().for_each(|client| budget.saw(client, Purpose::Miss, now));
    let pull = |budget: &mut Budget, answer: Told, is_given: bool| {
        assert_eq!(budget.verdict(&by("one"), now), Verdict::Pass);
        let taken = budget.begin(&by("one"), now).expect("scarce");
        budget.end();
        if !is_given && !budget.has_fallen(answer, now) {
            budget.give_back(taken);
        }
        budget.note(now, now, answer, None);
    };
    for _ in 0..9 {
        pull(&mut budget, Told::default(), false);
        pull(&mut budget, told(20, 4), false);
    }
    pull(&mut budget, told(20, 3), true);
    pull(&mut budget, told(20, 2), false);
    let Verdict::HeldBack(held) = budget.verdict(&by("one"), now) else { panic!("an error was charged") };
    assert_eq!(held.what, Held::Share);
    // What was taken of another pot is not given back to this one.
    let old = budget.begin(&by("other"), now).expect("scarce");
    budget.note(now, now, told(20, 20), None);
    budget.note(now, now, told(20, 1), None);
    assert!(budget.begin(&by("other"), now).is_some());
    budget.give_back(old);
    (0..2).for_each(|_| budget.end());
    assert!(matches!(budget.verdict(&by("other"), now), Verdict::HeldBack(_)));
}

#[test]
fn no_word_is_too_large_to_be_reckoned_with() {
    let (now, longest) = (Instant::now(), Duration::from_secs(u64::MAX));
    for (limit, left, window) in [
        (u64::MAX, u64::MAX, longest),
        (u64::MAX, 1, Duration::MAX),
        (1, u64::MAX, longest),
        (u64::MAX, u64::MAX / 2, Duration::ZERO),
    ] {
        let mut budget = Budget::new(reserved());
        let told = Told { limit: Some(limit), remaining: Some(left), window: Some(window) };
        budget.saw("one", Purpose::Miss, now);
        budget.note(now, now, told, None);
        for purpose in [Purpose::Background, Purpose::Revalidation, Purpose::Miss, Purpose::Priority] {
            for later in [now, now + WINDOW * 1000] {
                if let Verdict::HeldBack(held) = budget.verdict(&of(purpose), later) {
                    assert_eq!(held.wait, RETRY);
                }
                budget.verdict(&by("one"), later);
                budget.needs_word(&of(purpose), later);
            }
        }
        budget.note(now + MINUTE, now + MINUTE, Told { remaining: Some(left - 1), ..told }, None);
    }
}

#[test]
fn priority_has_no_share_to_keep_to() {
    let (mut budget, now) = budget(Options::default(), 20, 4);
    ["ci", "a", "b", "c"].iter().for_each(|client| budget.saw(client, Purpose::Miss, now));
    budget.begin(&by("ci"), now);
    assert_ne!(budget.verdict(&by("ci"), now), Verdict::Pass);
    let first = Spender { purpose: Purpose::Priority, client: Some("ci".to_owned()) };
    assert_eq!(budget.verdict(&first, now), Verdict::Pass);
}

#[test]
fn an_old_word_is_renewed_before_it_holds_something_back() {
    let (mut budget, now) = budget(reserved(), 100, 5);
    let miss = of(Purpose::Miss);
    assert!(!budget.needs_word(&miss, now));
    assert!(budget.needs_word(&miss, now + WORD));
    assert!(!budget.needs_word(&of(Purpose::Priority), now + WORD), "nothing holds it back");
    budget.look(now + WORD);
    assert!(!budget.needs_word(&miss, now + WORD), "somebody asks already");
    // Nothing is known at the start. Who tells nothing is not asked again and again.
    let mut fresh = Budget::new(reserved());
    assert!(fresh.needs_word(&miss, now) && !fresh.needs_word(&of(Purpose::Priority), now));
    fresh.note(now, now, Told::default(), None);
    assert!(!fresh.needs_word(&miss, now + WORD));
    let unreserved = Budget::new(Options::default());
    assert!(!unreserved.needs_word(&miss, now) && unreserved.needs_word(&of(Purpose::Background), now));
}

#[test]
fn another_source_is_another_quota() {
    let (mut budget, now) = budget(Options::default(), 100, 90);
    let found = budget.note(now, now, told(100, 20), Some("192.0.2.2"));
    assert_eq!(found, Found::default(), "no leak");
    assert_eq!(budget.source(), Some("192.0.2.2"));
    let found = budget.note(now, now, told(100, 10), Some("192.0.2.2"));
    assert_eq!((found.pulls, found.is_news), (10, true));
}
