//! Sequences of folders against a reference model: what is there in the end follows from the last
//! folder alone, whatever was there before and however quickly it changed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use vmlet::object::Quantity;
use vmlet::store::{Record, Run};
use vmlet::testing::{ImageScript, Options, Simulation, Trouble};

use crate::schedule::{image, vm};

/// What a reference is in the registry; the third is not there.
const REFERENCES: [(&str, Option<char>); 3] =
    [("r/a:1", Some('a')), ("r/b:1", Some('b')), ("r/missing:1", None)];
/// The memory for VMs, in MiB: not enough for three of the larger ones.
const ROOM: u32 = 640;

#[derive(Clone, Debug)]
enum Step {
    /// A VM's file, or the other one that declares the same name.
    Vm {
        vm: u8,
        rival: bool,
        spec: Spec,
    },
    NoVm {
        vm: u8,
        rival: bool,
    },
    Image {
        image: u8,
        reference: usize,
    },
    NoImage(u8),
    Crash,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Spec {
    image: Source,
    mebibytes: u32,
    halted: bool,
    /// It waits for the VM of the number before.
    depends: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Source {
    Reference(usize),
    Image(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let source = prop_oneof![(0..3_usize).prop_map(Source::Reference), (0..2_u8).prop_map(Source::Image)];
    let few = prop::bool::weighted(0.2);
    let vm = (0..3_u8, prop::bool::weighted(0.1), source, 1..3_u32, few, few);
    let vm = vm.prop_map(|(vm, rival, image, size, halted, depends)| Step::Vm {
        vm,
        rival,
        spec: Spec { image, mebibytes: 128 * size, halted, depends: depends && vm > 0 },
    });
    prop_oneof![
        6 => vm,
        2 => (0..3_u8, few).prop_map(|(vm, rival)| Step::NoVm { vm, rival }),
        3 => (0..2_u8, 0..3_usize).prop_map(|(image, reference)| Step::Image { image, reference }),
        1 => (0..2_u8).prop_map(Step::NoImage),
        1 => Just(Step::Crash),
    ]
}

/// The last folder, and which images are not certain: one that was deleted stays as long as a VM names
/// it, and what runs from it runs on.
#[derive(Default)]
struct Model {
    vms: BTreeMap<(u8, bool), Spec>,
    images: BTreeMap<u8, usize>,
    uncertain: BTreeSet<u8>,
}

/// What is to become of a VM.
#[derive(Debug, PartialEq)]
enum Fate {
    /// It runs, as one of these: digest and memory.
    Runs(BTreeSet<(char, u32)>),
    Rests,
    /// It runs if it did before: what it needs cannot be had any more.
    Either,
}

impl Model {
    fn take(&mut self, step: &Step) {
        match *step {
            Step::Vm { vm, rival, spec } => _ = self.vms.insert((vm, rival), spec),
            Step::NoVm { vm, rival } => _ = self.vms.remove(&(vm, rival)),
            Step::Image { image, reference } => _ = self.images.insert(image, reference),
            Step::NoImage(image) => {
                self.images.remove(&image);
                self.uncertain.insert(image);
            }
            Step::Crash => {}
        }
    }

    /// What a VM would run; none if that cannot be had, or nobody knows.
    fn digest(&self, source: Source) -> Option<char> {
        let reference = match source {
            Source::Reference(reference) => reference,
            Source::Image(image) if self.uncertain.contains(&image) => return None,
            Source::Image(image) => *self.images.get(&image)?,
        };
        REFERENCES[reference].1
    }

    /// The declarations of a VM: either may be in force.
    fn declared(&self, vm: u8) -> Vec<Spec> {
        [false, true].iter().filter_map(|rival| self.vms.get(&(vm, *rival)).copied()).collect()
    }

    /// With room for all, what becomes of each VM.
    fn fates(&self) -> BTreeMap<u8, Fate> {
        let mut fates = BTreeMap::new();
        for vm in 0..3 {
            let specs = self.declared(vm);
            // Nothing that is waited for comes, but who ran before runs on.
            let waits = |spec: &Spec| spec.depends && !matches!(fates.get(&(vm - 1)), Some(Fate::Runs(_)));
            let forms = specs.iter().map(|spec| Some((self.digest(spec.image)?, spec.mebibytes)));
            let fate = if specs.iter().all(|spec| spec.halted) {
                Fate::Rests
            } else if specs.iter().any(|spec| spec.halted || waits(spec)) {
                Fate::Either
            } else {
                forms.collect::<Option<_>>().map_or(Fate::Either, Fate::Runs)
            };
            fates.insert(vm, fate);
        }
        fates
    }

    /// The memory of all that may run, if each declaration that asks for more is in force.
    fn demand(&self) -> u32 {
        (0..3).filter_map(|vm| self.declared(vm).iter().map(|spec| spec.mebibytes).max()).sum()
    }

    /// What is wrong with what runs.
    fn differences(&self, running: &BTreeMap<u8, (char, u32)>) -> Vec<String> {
        let used: u32 = running.values().map(|(_, mebibytes)| mebibytes).sum();
        let mut wrong = Vec::new();
        if used > ROOM {
            wrong.push(format!("{used} MiB are in use of {ROOM}"));
        }
        // Whoever is first in line does not fit, and may keep others waiting.
        let waiting =
            |vm: &u8| !running.contains_key(vm) && self.declared(*vm).iter().any(|spec| !spec.halted);
        let needs = (0..3).filter(waiting).flat_map(|vm| self.declared(vm)).map(|spec| spec.mebibytes);
        let crowded = self.demand() > ROOM && needs.max().is_some_and(|need| used + need > ROOM);
        for (vm, fate) in self.fates() {
            let runs = running.get(&vm);
            let right = match &fate {
                Fate::Runs(forms) => runs.map_or(crowded, |form| forms.contains(form)),
                Fate::Rests => runs.is_none(),
                Fate::Either => true,
            };
            // What a VM waits for may itself wait for room.
            let held_up =
                runs.is_none() && self.demand() > ROOM && self.declared(vm).iter().any(|spec| spec.depends);
            if !right && !held_up {
                wrong.push(format!("v{vm}: {fate:?}, and it runs {runs:?}"));
            }
        }
        wrong
    }
}

fn file(step: &Step) -> Option<(String, Option<String>)> {
    let path = |vm: u8, rival: bool| format!("{}{vm}.yaml", if rival { "w" } else { "v" });
    Some(match step {
        Step::Vm { vm: number, rival, spec: Spec { image, mebibytes, halted, depends } } => {
            let image = match image {
                Source::Reference(reference) => format!("oci: '{}'", REFERENCES[*reference].0),
                Source::Image(image) => format!("name: i{image}"),
            };
            let policy = if *halted { "Halted" } else { "Always" };
            let depends = if *depends { format!("v{}", number - 1) } else { String::new() };
            let spec = format!(
                "{{image: {{{image}}}, memory: {mebibytes}Mi, runPolicy: {policy}, dependsOn: [{depends}]}}"
            );
            (path(*number, *rival), Some(vm(&format!("v{number}"), "x", &spec)))
        }
        Step::NoVm { vm, rival } => (path(*vm, *rival), None),
        Step::Image { image: number, reference } => {
            (format!("i{number}.yaml"), Some(image(&format!("i{number}"), REFERENCES[*reference].0)))
        }
        Step::NoImage(number) => (format!("i{number}.yaml"), None),
        Step::Crash => return None,
    })
}

/// The VMs that run: by number, the last digit of the digest and the memory in MiB.
fn running(sim: &Simulation) -> BTreeMap<u8, (char, u32)> {
    let up = |record: Record| match record {
        Record::Vm(vm) if matches!(vm.run, Run::Up { .. }) => {
            let held = vm.reservation.as_ref()?;
            let digest = held.image.as_str().chars().last()?;
            let mebibytes = u32::try_from(held.memory.as_bytes() >> 20).ok()?;
            Some((vm.object.metadata.name[1..].parse().unwrap(), (digest, mebibytes)))
        }
        _ => None,
    };
    sim.objects().into_iter().filter_map(up).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_last_folder_decides(
        seed in any::<u64>(),
        steps in prop::collection::vec((0..6000_u64, step()), 1..14),
    ) {
        let mut options = Options { trouble: Trouble::SHUFFLED, ..Options::default() };
        options.settings.capacity.memory = Quantity::mebibytes(u64::from(ROOM));
        let mut sim = Simulation::new(seed, options);
        let mut model = Model::default();
        for (reference, digit) in REFERENCES {
            let mut script = ImageScript::new(digit.unwrap_or('0'), Duration::from_secs(2));
            script.digest = script.digest.filter(|_| digit.is_some());
            sim.script_image(reference, script);
        }
        for (pause, step) in &steps {
            model.take(step);
            match file(step) {
                Some((path, Some(text))) => sim.write(&path, &text),
                Some((path, None)) => sim.remove(&path),
                None => sim.crash(Duration::from_millis(*pause)),
            }
            sim.run_for(Duration::from_millis(*pause));
        }
        let settled = sim.run_until_converged(Duration::from_secs(3600));
        prop_assert!(settled.is_ok(), "{settled:#?}");
        prop_assert_eq!(sim.violations(), Vec::<String>::new());
        prop_assert_eq!(model.differences(&running(&sim)), Vec::<String>::new());
    }
}
