//! Whether things are as expected.

use super::{Expectation, Scenario};
use crate::api::phase;
use crate::manifest::FileState;
use crate::object::{AnyObject, Condition, ConditionStatus, ObjectKey, RunPolicy};
use crate::store::{Record, Run};
use crate::testing::Simulation;
use crate::testing::life::summary;

impl Scenario {
    /// What is not as one expectation has it, now.
    pub(super) fn judge(&self, line: u32, expected: &Expectation, sim: &Simulation) -> Vec<String> {
        let key = &expected.object.0;
        let record = sim.objects().into_iter().find(|record| record.key() == *key);
        let when = expected.at.map_or_else(|| "in the end".to_owned(), |at| format!("at {at}"));
        let wrong = wrong(expected, record.as_ref());
        let place = |wrong| format!("{}:{line}: {key}, {when}: {wrong}", self.path.display());
        wrong.into_iter().map(place).collect()
    }

    /// What is not as it should be in the end.
    pub(super) fn judge_end(&self, sim: &Simulation) -> Vec<String> {
        let last = || self.expectations.iter().filter(|(_, expected)| expected.at.is_none());
        let mut wrong: Vec<String> =
            last().flat_map(|(line, expected)| self.judge(*line, expected, sim)).collect();
        let spoken_of: Vec<&ObjectKey> = last()
            .filter(|(_, expected)| expected.of_readiness())
            .map(|(_, expected)| &expected.object.0)
            .collect();
        let objects = sim.objects();
        for key in declared(sim).iter().filter(|key| !spoken_of.contains(key)) {
            match objects.iter().find(|record| record.key() == *key) {
                None => wrong.push(format!("{key} is declared in the end and not there")),
                Some(record) => {
                    wrong.extend(not_at_rest(record).map(|why| format!("{key}, in the end: {why}")))
                }
            }
        }
        // Who expects something else than a good end need not expect rest either.
        if wrong.is_empty() && !last().any(|(_, expected)| expected.of_trouble()) {
            wrong.extend(sim.unsettled().into_iter().map(|open| format!("not at rest in the end: {open}")));
        }
        let never = sim.violations().into_iter();
        wrong
            .extend(never.map(|violation| format!("a fault of vmlet itself, please report it: {violation}")));
        wrong
    }
}

impl Expectation {
    fn of_readiness(&self) -> bool {
        self.ready.is_some() || self.phase.is_some() || self.reason.is_some() || self.gone.is_some()
    }

    fn of_trouble(&self) -> bool {
        self.ready == Some(false) || self.phase.is_some() || self.reason.is_some()
    }
}

fn declared(sim: &Simulation) -> Vec<ObjectKey> {
    let mut keys = Vec::new();
    for state in sim.files() {
        if let FileState::Good(objects) = state {
            keys.extend(objects.iter().map(|located| located.object.key()));
        }
    }
    keys.sort();
    keys.dedup();
    keys
}

fn wrong(expected: &Expectation, record: Option<&Record>) -> Vec<String> {
    let Some(record) = record else {
        let gone = expected.gone == Some(true);
        return if gone { Vec::new() } else { vec!["it is not there".to_owned()] };
    };
    let is = summary(record);
    let object = record.object();
    let ready = object.conditions().iter().find(|condition| condition.kind == "Ready");
    let mut wrong = Vec::new();
    if expected.gone == Some(true) {
        wrong.push(format!("it is still there: {is}"));
    }
    if let Some(wanted) = expected.ready.filter(|wanted| *wanted != holds(ready)) {
        wrong.push(format!("it is {}: {is}", if wanted { "not ready" } else { "ready" }));
    }
    let shown = phase_of(record, &object);
    if let Some(wanted) = expected.phase.as_ref().filter(|wanted| *wanted != shown) {
        wrong.push(format!("its phase is {shown}, not {wanted}: {is}"));
    }
    let reason = ready.map_or("", |ready| ready.reason.as_str());
    if let Some(wanted) = expected.reason.as_ref().filter(|wanted| *wanted != reason) {
        wrong.push(format!("its reason is {reason}, not {wanted}: {is}"));
    }
    let restarts = restarts(&object);
    if let Some(most) = expected.restarts_at_most.filter(|most| restarts > *most) {
        wrong.push(format!("it was started again {restarts} times, not {most} at most"));
    }
    wrong
}

/// Why an object is not as its manifest asks.
fn not_at_rest(record: &Record) -> Option<String> {
    let object = record.object();
    if let Some(problem) = record.problem() {
        return Some(format!("{}: {}", problem.reason, problem.message));
    }
    let ready = object.conditions().iter().find(|condition| condition.kind == "Ready");
    let at_rest = match record {
        Record::Vm(vm) if vm.object.spec.run_policy == RunPolicy::Halted => vm.run == Run::Idle,
        Record::Vm(vm) => matches!(vm.run, Run::Ended { .. }),
        Record::Image(_) => false,
    };
    (!holds(ready) && !at_rest).then(|| format!("it is not ready: {}", summary(record)))
}

fn holds(ready: Option<&Condition>) -> bool {
    ready.is_some_and(|ready| ready.status == ConditionStatus::True)
}

fn phase_of<'a>(record: &Record, object: &'a AnyObject) -> &'a str {
    let of_status = match object {
        AnyObject::Vm(vm) => &vm.status.phase,
        AnyObject::Image(image) => &image.status.phase,
    };
    phase(record.metadata(), of_status)
}

fn restarts(object: &AnyObject) -> u32 {
    match object {
        AnyObject::Vm(vm) => vm.status.restarts,
        AnyObject::Image(_) => 0,
    }
}
