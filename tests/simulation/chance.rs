//! Seeded schedules: whatever happens, in the end the world is as the folder says.

use std::time::Instant;

use crate::schedule;
use crate::threads;

/// The schedules that every run of the tests tries.
const BUDGET: u64 = 500;

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

fn check(seed: u64) -> Result<(), String> {
    let (_, wrong) = schedule::run(seed, false);
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n  ")) }
}

fn all(seeds: std::ops::Range<u64>) {
    let (began, count) = (Instant::now(), seeds.end - seeds.start);
    let failed = threads::each(seeds, check);
    let took = began.elapsed().as_secs_f64();
    println!("{count} schedules in {took:.1} s, {:.0} an hour", count as f64 / took * 3600.0);
    for (seed, why) in failed.iter().take(10) {
        println!("seed {seed}:\n  {why}");
    }
    let seeds: Vec<u64> = failed.iter().map(|(seed, _)| *seed).collect();
    assert!(
        failed.is_empty(),
        "{} of {count} schedules failed: {seeds:?}; look at one with VMLET_SEED={} cargo test --test simulation \
         chance -- --nocapture, and add its seed to tests/simulation/regressions.txt once it is mended",
        failed.len(),
        seeds[0]
    );
}

#[test]
fn chance_never_wins() {
    if let Some(seed) = number("VMLET_SEED") {
        let (sim, wrong) = schedule::run(seed, true);
        for entry in sim.timeline() {
            println!("{entry}");
        }
        assert!(wrong.is_empty(), "seed {seed}:\n  {}", wrong.join("\n  "));
        return;
    }
    let from = number("VMLET_FROM").unwrap_or(0);
    all(from..from + number("VMLET_SEEDS").unwrap_or(BUDGET));
}

/// Every seed that ever failed, with what it showed.
const REGRESSIONS: &str = include_str!("regressions.txt");

#[test]
fn what_failed_once_fails_no_more() {
    let lines = REGRESSIONS.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let seeds: Vec<u64> =
        lines.map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect();
    let failed = threads::each(0..seeds.len() as u64, |index| check(seeds[index as usize]));
    let failed: Vec<_> = failed.into_iter().map(|(index, why)| (seeds[index as usize], why)).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..20 {
        let told = || {
            let (sim, _) = schedule::run(seed, true);
            sim.timeline().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let (first, second) = (told(), told());
        for (first, second) in first.iter().zip(&second) {
            assert_eq!(first, second, "seed {seed}");
        }
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}
