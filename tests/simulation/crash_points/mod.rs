//! The daemon dies right before and right after every effect on the host, every write and every flush of
//! the store, in the life of VMs and images; the next one finds its way.

mod stories;

use std::time::Duration;

use vmlet::testing::{ImageScript, Options, Simulation, Unflushed};

use self::stories::{IMAGES, PLAIN, Step, Story, web};
use crate::threads;

/// Far beyond every backoff, boot and grace period.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Where the daemon dies.
#[derive(Clone, Copy, Debug)]
struct Deaths {
    first: Option<u64>,
    /// Counted from the first death.
    second: Option<u64>,
    unflushed: Unflushed,
}

/// Lives through a story. Returns its moments.
fn live(steps: &[Step], deaths: Deaths) -> Result<u64, String> {
    let mut options = Options { unflushed: deaths.unflushed, tell_effects: true, ..Options::default() };
    for step in steps {
        if let Step::Grace(seconds) = step {
            options.settings.retention.grace = Duration::from_secs(*seconds);
        }
    }
    let mut sim = Simulation::new(1, options);
    for (reference, digit) in [("r/a:1", 'a'), ("r/a:2", 'b')] {
        sim.script_image(reference, ImageScript::new(digit, Duration::from_secs(2)));
    }
    sim.crash_at_moment(deaths.first);
    let mut second = deaths.second;
    for step in steps {
        match step {
            Step::Write(path, text) => sim.write(path, text),
            Step::Remove(path) => sim.remove(path),
            Step::Do(action) => sim.at(Duration::ZERO, action.clone()),
            Step::Script(script) => sim.script_vm(web(), script.clone()),
            Step::Grace(_) => {}
            Step::Wait(seconds) => sim.run_for(Duration::from_secs(*seconds)),
            Step::Settle => settle(&mut sim, &mut second)?,
        }
    }
    let moments = sim.moments();
    sim.crash_at_moment(None);
    sim.run_for(Duration::from_secs(60));
    let mut wrong = sim.unsettled();
    wrong.extend(sim.violations());
    if wrong.is_empty() { Ok(moments) } else { Err(report(&sim, &wrong)) }
}

/// Settles; the second death is planned as soon as the first has come.
fn settle(sim: &mut Simulation, second: &mut Option<u64>) -> Result<(), String> {
    if second.is_some() {
        let until = sim.now() + PATIENCE;
        while sim.crashes() == 0 && sim.now() < until {
            if sim.unsettled().is_empty() {
                return Ok(());
            }
            sim.run_for(Duration::from_millis(100));
        }
        sim.crash_at_moment(second.take());
    }
    sim.run_until_converged(PATIENCE).map(drop).map_err(|open| report(sim, &open))
}

fn report(sim: &Simulation, wrong: &[String]) -> String {
    let timeline: Vec<String> = sim.timeline().iter().map(ToString::to_string).collect();
    format!("{}\n{}", wrong.join("\n"), timeline.join("\n"))
}

fn never_in_vain(name: &str, failed: &[(u64, String)], all: &[Deaths]) {
    if let Some((index, why)) = failed.first() {
        let deaths = all[*index as usize];
        panic!(
            "{name}: {} of {} deaths are not survived, the first is {deaths:?}: {why}",
            failed.len(),
            all.len()
        );
    }
}

#[test]
fn a_death_at_any_moment_is_survived() {
    survive(&PLAIN);
}

#[test]
fn a_death_at_any_moment_of_an_image_is_survived() {
    survive(&IMAGES);
}

fn survive(stories: &[Story]) {
    let mut tried = 0;
    for (name, story) in stories {
        let none = Deaths { first: None, second: None, unflushed: Unflushed::Lost };
        let moments = live(&story(), none).unwrap_or_else(|why| panic!("{name}, undisturbed: {why}"));
        let deaths: Vec<Deaths> = (1..=moments)
            .flat_map(|moment| {
                [Unflushed::Lost, Unflushed::Kept].map(|unflushed| Deaths {
                    first: Some(moment),
                    second: None,
                    unflushed,
                })
            })
            .collect();
        let failed =
            threads::each(0..deaths.len() as u64, |index| live(&story(), deaths[index as usize]).map(drop));
        never_in_vain(name, &failed, &deaths);
        println!("{name}: {moments} moments");
        tried += deaths.len();
    }
    println!("{tried} deaths survived");
}

#[test]
fn a_death_while_recovering_from_another_is_survived() {
    let (name, story) = PLAIN[9];
    let none = Deaths { first: None, second: None, unflushed: Unflushed::Lost };
    let moments = live(&story(), none).unwrap();
    let deaths: Vec<Deaths> = (1..=moments)
        .step_by(5)
        .flat_map(|first| (1..20).map(move |second| (first, second)))
        .map(|(first, second)| Deaths {
            first: Some(first),
            second: Some(second),
            unflushed: Unflushed::Chance,
        })
        .collect();
    let failed =
        threads::each(0..deaths.len() as u64, |index| live(&story(), deaths[index as usize]).map(drop));
    never_in_vain(name, &failed, &deaths);
}
