use std::time::{Duration, Instant};

use super::super::root::Stamp;
use super::super::stability::{Look, Patience, Settling, Verdict};

const MS: Duration = Duration::from_millis(1);

fn look(content: u8, modified: u32) -> Look {
    let modified = Duration::from_millis(modified.into());
    let stamp = Stamp { device: 1, inode: 1, size: content.into(), modified, changed: modified };
    Look { stamp, digest: [content; 32], blank: content == 0 }
}

/// Looks at the given milliseconds; the file's age is the time since its modification.
fn verdicts(looks: &[(u32, Look)]) -> Vec<Verdict> {
    let mut settling = Settling::default();
    let start = Instant::now();
    let mut see = |at: u32, look: Look| {
        let age = (MS * at).saturating_sub(look.stamp.modified);
        settling.look(look, age, start + MS * at, &Patience::default())
    };
    looks.iter().map(|(at, look)| see(*at, *look)).collect()
}

use Verdict::{New, Same, Wait};

#[test]
fn two_same_looks_settle_a_file() {
    let web = look(1, 1000);
    assert_eq!(verdicts(&[(1000, web), (1050, web), (1100, web), (1200, web)]), [Wait, Wait, New, Same]);
}

#[test]
fn an_old_file_is_settled_at_once() {
    assert_eq!(verdicts(&[(2000, look(1, 1000)), (2010, look(1, 1000))]), [New, Same]);
}

#[test]
fn a_file_that_keeps_changing_is_not_used() {
    let looks: Vec<(u32, Look)> = (0..20).map(|step| (step * 60, look(step as u8 + 1, step * 60))).collect();
    assert!(verdicts(&looks).iter().all(|verdict| *verdict == Wait));
}

#[test]
fn a_write_within_the_clocks_grain_restarts_the_wait() {
    // The same stamp, other content.
    let (first, mut second) = (look(1, 1000), look(1, 1000));
    second.digest = [9; 32];
    assert_eq!(
        verdicts(&[(1000, first), (1090, second), (1150, second), (1190, second)]),
        [Wait, Wait, Wait, New]
    );
}

#[test]
fn an_empty_file_is_given_longer() {
    let (web, empty) = (look(1, 0), look(0, 5000));
    let seen = verdicts(&[(4000, web), (5000, empty), (5200, empty), (6900, empty), (7000, empty)]);
    assert_eq!(seen, [New, Wait, Wait, Wait, New]);
}

#[test]
fn content_that_comes_back_was_never_gone() {
    let (web, empty) = (look(1, 0), look(0, 5000));
    assert_eq!(verdicts(&[(4000, web), (5000, empty), (5100, look(1, 5050))]), [New, Wait, Same]);
}

#[test]
fn a_modification_in_the_future_is_not_old() {
    assert_eq!(verdicts(&[(1000, look(1, 99_000)), (1100, look(1, 99_000))]), [Wait, New]);
}
