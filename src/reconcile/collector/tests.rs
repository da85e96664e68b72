use std::time::Duration;

use jiff::Timestamp;

use super::plan::{Plan, Reason, Retention, Seen, plan};
use crate::image::Digest;
use crate::reconcile::room::Space;

const RETENTION: Retention = Retention { grace: Duration::from_secs(600), low: 10, high: 15 };

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn digest(letter: char) -> Digest {
    format!("sha256:{}", letter.to_string().repeat(64)).parse().unwrap()
}

/// At second 1000, with so many percent free.
fn seen(unused: &[(char, i64)], free: u64) -> Seen {
    let unused = unused.iter().map(|(letter, since)| (digest(*letter), at(*since))).collect();
    let space = Some(Space { free, total: 100 });
    Seen { unused, layers: 0, now: at(1000), space, pressed: false, starved: false }
}

fn going(plan: &Plan) -> Vec<(Digest, Reason)> {
    plan.remove.iter().map(|(digest, _, reason)| (digest.clone(), *reason)).collect()
}

#[test]
fn a_disk_goes_when_its_grace_is_over() {
    let planned = plan(&RETENTION, &seen(&[('a', 400), ('b', 401), ('c', 399)], 50));
    assert_eq!(going(&planned), [(digest('c'), Reason::Unused), (digest('a'), Reason::Unused)]);
    assert_eq!((planned.next, planned.watch), (Some(at(1001)), true));
    let nothing = plan(&RETENTION, &seen(&[], 5));
    assert_eq!((nothing.remove.len(), nothing.next, nothing.watch), (0, None, false));
}

#[test]
fn without_a_grace_all_go_at_once() {
    let none = Retention { grace: Duration::ZERO, ..RETENTION };
    assert_eq!(going(&plan(&none, &seen(&[('a', 1000)], 50))), [(digest('a'), Reason::Unused)]);
}

#[test]
fn when_room_is_wanted_the_longest_unused_goes_until_there_is_enough() {
    let unused = [('b', 900), ('a', 950)];
    assert!(plan(&RETENTION, &seen(&unused, 10)).remove.is_empty(), "at the mark there is room");
    let planned = plan(&RETENTION, &seen(&unused, 9));
    assert_eq!(going(&planned), [(digest('b'), Reason::DiskPressure)], "one at a time");
    assert!(planned.pressed);
    let between = |pressed| plan(&RETENTION, &Seen { pressed, ..seen(&unused, 14) });
    assert_eq!(going(&between(true)), [(digest('b'), Reason::DiskPressure)]);
    assert!(between(false).remove.is_empty(), "not below the low mark yet");
    assert_eq!(between(false).next, Some(at(1500)), "of those that are kept the first grace that ends");
    let upside_down = Retention { low: 20, high: 10, ..RETENTION };
    assert!(
        plan(&upside_down, &seen(&unused, 12)).remove.is_empty(),
        "the low mark is no higher than the high one"
    );
    let enough = plan(&RETENTION, &Seen { pressed: true, ..seen(&unused, 15) });
    assert!(enough.remove.is_empty() && !enough.pressed);
}

#[test]
fn kept_layers_go_before_disks_and_no_more_of_them_than_need_be() {
    let with = |layers, free| Seen { layers, ..seen(&[('a', 900)], free) };
    for (layers, left) in [(20, 14), (6, 0), (5, 0), (1, 0)] {
        let planned = plan(&RETENTION, &with(layers, 9));
        assert_eq!(
            (planned.layers, planned.remove.len(), planned.pressed),
            (Some(left), 0, true),
            "{layers}"
        );
    }
    assert_eq!(plan(&RETENTION, &with(20, 10)).layers, None, "there is room");
    let between = Seen { pressed: true, ..with(20, 14) };
    assert_eq!(plan(&RETENTION, &between).layers, Some(19), "up to the high mark");
    let over = Seen { layers: 20, ..seen(&[('a', 100)], 9) };
    assert_eq!(plan(&RETENTION, &over).layers, None, "what goes anyway goes first");
    let starved = Seen { starved: true, ..with(20, 50) };
    assert_eq!(
        going(&plan(&RETENTION, &starved)),
        [(digest('a'), Reason::NoSpace)],
        "the pull has tried them"
    );
    let only_layers = Seen { layers: 20, ..seen(&[], 50) };
    assert!(plan(&RETENTION, &only_layers).watch, "they could make room");
    let off = Retention { low: 0, ..RETENTION };
    let planned = plan(&off, &Seen { layers: 20, ..seen(&[], 1) });
    assert!(planned.layers.is_none() && !planned.watch);
}

#[test]
fn what_goes_anyway_goes_first() {
    let planned = plan(&RETENTION, &Seen { starved: true, ..seen(&[('a', 100), ('b', 900)], 1) });
    assert_eq!(going(&planned), [(digest('a'), Reason::Unused)]);
    assert!(planned.pressed, "and then the room is looked at again");
}

#[test]
fn a_pull_that_found_no_room_takes_one_whatever_is_free() {
    let starved = Seen { starved: true, ..seen(&[('a', 900), ('b', 950)], 50) };
    assert_eq!(going(&plan(&RETENTION, &starved)), [(digest('a'), Reason::NoSpace)]);
}

#[test]
fn without_marks_or_without_knowledge_no_room_is_wanted() {
    let off = Retention { low: 0, ..RETENTION };
    let planned = plan(&off, &Seen { pressed: true, ..seen(&[('a', 900)], 1) });
    assert!(planned.remove.is_empty() && !planned.watch && !planned.pressed);
    assert!(plan(&RETENTION, &Seen { space: None, ..seen(&[('a', 900)], 1) }).remove.is_empty());
}

#[test]
fn a_clock_that_was_set_back_keeps_disks() {
    assert!(plan(&RETENTION, &seen(&[('a', 5000)], 50)).remove.is_empty());
}
