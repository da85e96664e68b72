//! Sequences of folders against a reference model: what is there in the end follows from the last
//! folder alone, whatever was there before and however quickly it changed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use vmlet::store::{Record, Run};
use vmlet::testing::{ImageScript, Options, Simulation, Trouble};

use crate::schedule::{image, vm};

/// What a reference is in the registry; the third is not there.
const REFERENCES: [(&str, Option<char>); 3] =
    [("r/a:1", Some('a')), ("r/b:1", Some('b')), ("r/missing:1", None)];

#[derive(Clone, Debug)]
enum Step {
    Vm { vm: u8, image: Source, mebibytes: u32, halted: bool },
    NoVm(u8),
    Image { image: u8, reference: usize },
    NoImage(u8),
    Crash,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    Reference(usize),
    Image(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let source = prop_oneof![(0..3_usize).prop_map(Source::Reference), (0..2_u8).prop_map(Source::Image)];
    let vm = (0..3_u8, source, 1..3_u32, prop::bool::weighted(0.2));
    prop_oneof![
        5 => vm.prop_map(|(vm, image, size, halted)| Step::Vm { vm, image, mebibytes: 128 * size, halted }),
        2 => (0..3_u8).prop_map(Step::NoVm),
        3 => (0..2_u8, 0..3_usize).prop_map(|(image, reference)| Step::Image { image, reference }),
        1 => (0..2_u8).prop_map(Step::NoImage),
        1 => Just(Step::Crash),
    ]
}

/// The last folder, and which images are not certain: one that was deleted stays as long as a VM names
/// it, and what runs from it runs on.
#[derive(Default)]
struct Model {
    vms: BTreeMap<u8, (Source, u32, bool)>,
    images: BTreeMap<u8, usize>,
    uncertain: BTreeSet<u8>,
}

impl Model {
    fn take(&mut self, step: &Step) {
        match *step {
            Step::Vm { vm, image, mebibytes, halted } => _ = self.vms.insert(vm, (image, mebibytes, halted)),
            Step::NoVm(vm) => _ = self.vms.remove(&vm),
            Step::Image { image, reference } => _ = self.images.insert(image, reference),
            Step::NoImage(image) => {
                self.images.remove(&image);
                self.uncertain.insert(image);
            }
            Step::Crash => {}
        }
    }

    /// What runs in the end: name, image and memory; and what may or may not.
    fn expected(&self) -> (BTreeSet<(String, char, u32)>, BTreeSet<String>) {
        let (mut runs, mut may) = (BTreeSet::new(), BTreeSet::new());
        for (vm, (source, mebibytes, halted)) in &self.vms {
            let name = format!("v{vm}");
            let reference = match source {
                _ if *halted => continue,
                Source::Reference(reference) => Some(*reference),
                Source::Image(image) if self.uncertain.contains(image) => {
                    may.insert(name);
                    continue;
                }
                Source::Image(image) => self.images.get(image).copied(),
            };
            match reference.and_then(|reference| REFERENCES[reference].1) {
                Some(digit) => _ = runs.insert((name, digit, *mebibytes)),
                // An image that cannot be had keeps nothing from running that ran before.
                None => _ = may.insert(name),
            }
        }
        (runs, may)
    }
}

fn file(step: &Step) -> Option<(String, Option<String>)> {
    Some(match step {
        Step::Vm { vm: number, image, mebibytes, halted } => {
            let image = match image {
                Source::Reference(reference) => format!("oci: '{}'", REFERENCES[*reference].0),
                Source::Image(image) => format!("name: i{image}"),
            };
            let policy = if *halted { "Halted" } else { "Always" };
            let spec = format!("{{image: {{{image}}}, memory: {mebibytes}Mi, runPolicy: {policy}}}");
            (format!("v{number}.yaml"), Some(vm(&format!("v{number}"), "x", &spec)))
        }
        Step::NoVm(number) => (format!("v{number}.yaml"), None),
        Step::Image { image: number, reference } => {
            (format!("i{number}.yaml"), Some(image(&format!("i{number}"), REFERENCES[*reference].0)))
        }
        Step::NoImage(number) => (format!("i{number}.yaml"), None),
        Step::Crash => return None,
    })
}

fn running(sim: &Simulation) -> BTreeSet<(String, char, u32)> {
    let up = |record: Record| match record {
        Record::Vm(vm) if matches!(vm.run, Run::Up { .. }) => {
            let held = vm.reservation.as_ref()?;
            let digit = held.image.as_str().chars().last()?;
            let mebibytes = u32::try_from(held.memory.as_bytes() >> 20).ok()?;
            Some((vm.object.metadata.name.clone(), digit, mebibytes))
        }
        _ => None,
    };
    sim.objects().into_iter().filter_map(up).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_last_folder_decides(
        seed in any::<u64>(),
        steps in prop::collection::vec((0..6000_u64, step()), 1..14),
    ) {
        let mut sim = Simulation::new(seed, Options { trouble: Trouble::SHUFFLED, ..Options::default() });
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
        let (runs, may) = model.expected();
        let certain: BTreeSet<_> = running(&sim).into_iter().filter(|(name, ..)| !may.contains(name)).collect();
        prop_assert_eq!(certain, runs);
    }
}
