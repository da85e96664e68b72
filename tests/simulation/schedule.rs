//! A schedule from a seed: a folder that changes, a world that misbehaves, and in the end peace.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use vmlet::object::{Kind, ObjectKey, Quantity};
use vmlet::store::Record;
use vmlet::testing::{Action, EffectScript, ImageScript, Options, Simulation, Trouble};

/// When the trouble ends.
const PEACE: Duration = Duration::from_secs(90);
/// Far beyond every backoff, boot and grace period.
const PATIENCE: Duration = Duration::from_secs(2 * 3600);
/// What has converged is to stay as it is for so long.
const REST: Duration = Duration::from_secs(400);

const FILES: [&str; 4] = ["a.yaml", "b.yaml", "c.yaml", "sub/d.yaml"];
/// As many names as VMs have.
const VMS: u32 = 6;
/// Effects that may panic once.
const PANICS: [&str; 7] = ["resolve", "pull", "install", "prepare", "spawn", "attach", "cleanup"];
const REFERENCES: [&str; 5] = ["r/a:1", "r/a:2", "r/b:1", "r/same:1", "r/missing:1"];

/// Folder contents: what each file declares, by object.
type Folder = BTreeMap<&'static str, BTreeMap<ObjectKey, String>>;

pub(crate) struct Schedule {
    dice: StdRng,
}

impl Schedule {
    pub(crate) fn new(seed: u64) -> Self {
        // Not the world's own sequence.
        Schedule { dice: StdRng::seed_from_u64(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5EED) }
    }

    /// The simulation, with everything planned.
    pub(crate) fn simulation(&mut self, seed: u64, tell: bool) -> Simulation {
        let trouble = self.trouble();
        let mut options = Options { tell_effects: tell, trouble, ..Options::default() };
        options.history = *[3, 10, 8192].choose(&mut self.dice).unwrap();
        options.down = self.time(20);
        options.settings.max_pulls = self.dice.random_range(1..4);
        options.settings.max_boots = self.dice.random_range(1..5);
        let capacity = &mut options.settings.capacity;
        let mut tight = || self.dice.random_bool(0.25);
        if tight() {
            capacity.memory = Quantity::mebibytes(if tight() { 300 } else { 600 });
        }
        if tight() {
            capacity.cpus = if tight() { 2 } else { 4 };
        }
        if tight() {
            capacity.disk = Quantity::mebibytes(if tight() { 2500 } else { 5000 });
        }
        options.settings.patience = self.time(60);
        let mut sim = Simulation::new(seed, options);
        self.script_registry(&mut sim);
        if self.dice.random_bool(0.1) {
            // A bug of the engine's parts.
            let panics = self.dice.random_range(1..4);
            let name = *PANICS.choose(&mut self.dice).unwrap();
            sim.script_effect(name, EffectScript { panics, ..EffectScript::default() });
        }
        let mut folder = Folder::new();
        self.populate(&mut folder);
        for (path, objects) in &folder {
            sim.write(path, &text(objects));
        }
        for _ in 0..self.dice.random_range(2..10) {
            let at = self.time(PEACE.as_secs());
            self.plan(&mut sim, at);
        }
        // What is refused for good waits for an edit: no refusal comes after the last one.
        let mended = Trouble { lasting: 0.0, ..trouble };
        sim.at(PEACE - Duration::from_secs(10), Action::Trouble(Box::new(mended)));
        let mut edits: Vec<Duration> =
            (0..self.dice.random_range(0..6)).map(|_| self.time(PEACE.as_secs())).collect();
        edits.sort();
        for at in edits {
            for path in self.edit(&mut folder) {
                self.write(&mut sim, at, path, &folder);
            }
            if self.dice.random_bool(0.2) {
                self.blink(&mut sim, at, &folder);
            }
        }
        // A file that was left broken is whole in the end.
        for path in FILES {
            self.write_whole(&mut sim, PEACE, path, &folder);
        }
        sim.at(PEACE, Action::Trouble(Box::new(Trouble::NONE)));
        sim
    }

    fn time(&mut self, seconds: u64) -> Duration {
        Duration::from_millis(self.dice.random_range(0..seconds * 1000))
    }

    fn trouble(&mut self) -> Trouble {
        let rough = Trouble::ROUGH;
        let mut some = |share: f64| share * *[0.0, 0.0, 1.0, 1.0, 2.5].choose(&mut self.dice).unwrap();
        Trouble {
            slow: some(rough.slow).min(1.0),
            longest: rough.longest,
            failures: some(rough.failures),
            lasting: some(rough.lasting),
            slow_flushes: some(rough.slow_flushes),
            store_faults: some(rough.store_faults),
            crashes: some(rough.crashes),
            hangs: some(rough.hangs),
            panics: some(rough.panics),
            exits: some(rough.exits),
            deaf: some(rough.deaf),
            broken_links: some(rough.broken_links),
        }
    }

    fn script_registry(&mut self, sim: &mut Simulation) {
        for (reference, digit) in [("r/a:1", 'a'), ("r/a:2", 'b'), ("r/b:1", 'c'), ("r/same:1", 'a')] {
            let script = ImageScript {
                failures: self.dice.random_range(0..3),
                ..ImageScript::new(digit, self.time(20))
            };
            sim.script_image(reference, script);
        }
        sim.script_image(
            "r/missing:1",
            ImageScript { digest: None, ..ImageScript::new('d', Duration::ZERO) },
        );
    }

    /// Something other than an edit.
    fn plan(&mut self, sim: &mut Simulation, at: Duration) {
        let key = vm_key(self.dice.random_range(0..VMS));
        let action = match self.dice.random_range(0..9) {
            0 | 1 => Action::Crash { down: self.time(20) },
            2 | 3 => Action::Reboot { down: self.time(60) },
            4 => Action::FailStore,
            5 | 6 => Action::KillVmm(key),
            _ => Action::EndWorkload(key, self.dice.random_range(0..2)),
        };
        sim.at(at, action);
    }

    fn populate(&mut self, folder: &mut Folder) {
        for (name, reference) in [("i0", "r/a:1"), ("i1", "r/b:1")] {
            if self.dice.random_bool(0.8) {
                let path = *FILES.choose(&mut self.dice).unwrap();
                let key = ObjectKey::new(Kind::Image, "default", name);
                folder.entry(path).or_default().insert(key, image(name, reference));
            }
        }
        for number in 0..self.dice.random_range(1..VMS) {
            let path = *FILES.choose(&mut self.dice).unwrap();
            let key = vm_key(number);
            let object = self.object(&key);
            folder.entry(path).or_default().insert(key, object);
        }
    }

    /// A file goes and comes back before its objects are gone.
    fn blink(&mut self, sim: &mut Simulation, at: Duration, folder: &Folder) {
        let path = *FILES.choose(&mut self.dice).unwrap();
        let Some(objects) = folder.get(path) else { return };
        sim.at(at, Action::Remove { path: path.to_owned() });
        let back = at + Duration::from_millis(self.dice.random_range(0..4000));
        sim.at(back.min(PEACE), Action::Write { path: path.to_owned(), text: text(objects) });
    }

    /// Changes the folder; returns the files that changed.
    fn edit(&mut self, folder: &mut Folder) -> Vec<&'static str> {
        let path = *FILES.choose(&mut self.dice).unwrap();
        let key = if self.dice.random_bool(0.3) {
            image_key(self.dice.random_range(0..3))
        } else {
            vm_key(self.dice.random_range(0..VMS))
        };
        // Mostly where it is already: one name has one place.
        let home = folder.iter().find(|(_, objects)| objects.contains_key(&key)).map(|(path, _)| *path);
        let mut changed = Vec::new();
        if let Some(home) = home {
            let objects = folder.get_mut(home).unwrap();
            changed.push(home);
            match self.dice.random_range(0..4) {
                0 => {
                    objects.remove(&key);
                    return changed;
                }
                1 => {
                    let object = objects.remove(&key).unwrap();
                    folder.entry(path).or_default().insert(key, object);
                    changed.push(path);
                    return changed;
                }
                _ => {
                    let object = self.object(&key);
                    folder.get_mut(home).unwrap().insert(key, object);
                    return changed;
                }
            }
        }
        let object = self.object(&key);
        folder.entry(path).or_default().insert(key.clone(), object);
        let mut changed = vec![path];
        if self.dice.random_bool(0.05) {
            // A conflict: two files declare it.
            let rival = *FILES.choose(&mut self.dice).unwrap();
            let object = self.object(&key);
            folder.entry(rival).or_default().insert(key, object);
            changed.push(rival);
        }
        changed
    }

    fn write(&mut self, sim: &mut Simulation, at: Duration, path: &'static str, folder: &Folder) {
        if self.dice.random_bool(0.1) {
            let text = "kind: VM\nmetadata: {name: v0, v1, v2}\n".to_owned();
            sim.at(at, Action::Write { path: path.to_owned(), text });
        } else {
            self.write_whole(sim, at, path, folder);
        }
    }

    fn write_whole(&mut self, sim: &mut Simulation, at: Duration, path: &'static str, folder: &Folder) {
        let objects = folder.get(path).cloned().unwrap_or_default();
        let path = path.to_owned();
        if objects.is_empty() && self.dice.random() {
            sim.at(at, Action::Remove { path });
        } else {
            sim.at(at, Action::Write { path, text: text(&objects) });
        }
    }

    fn object(&mut self, key: &ObjectKey) -> String {
        match key.kind {
            Kind::Image => {
                let reference = REFERENCES.choose(&mut self.dice).unwrap();
                image(&key.name, reference)
            }
            Kind::Vm => self.vm(&key.name),
        }
    }

    fn vm(&mut self, name: &str) -> String {
        let dice = &mut self.dice;
        let mut pick = |options: &[&str]| (*options.choose(dice).unwrap()).to_owned();
        let image = pick(&[
            "name: i0",
            "name: i0",
            "name: i1",
            "name: i2",
            "oci: 'r/a:1'",
            "oci: 'r/a:2'",
            "oci: 'r/b:1'",
            "oci: 'r/same:1'",
            "oci: 'r/missing:1'",
        ]);
        let memory = pick(&["128Mi", "256Mi", "256Mi", "400Mi"]);
        let disk = pick(&["1Gi", "1Gi", "2Gi"]);
        let network = pick(&[
            "{}",
            "{}",
            "{ports: [{host: 80, guest: 80}]}",
            "{ports: [{host: 81, guest: 80}]}",
            "{address: 10.63.0.9}",
            "{mode: user}",
            "{mode: none}",
        ]);
        let policy = pick(&["Always", "Always", "Always", "RerunOnFailure", "Once", "Halted"]);
        let grace = pick(&["0", "1", "10"]);
        let label = pick(&["x", "y"]);
        let cpus = pick(&["1", "1", "2"]);
        let priority = pick(&["0", "0", "7", "-3"]);
        // Only on smaller numbers: nothing goes round in a circle.
        let number: u32 = name[1..].parse().unwrap();
        let count = if number > 0 { *[0, 0, 1, 2].choose(dice).unwrap() } else { 0 };
        let depends: BTreeSet<String> =
            (0..count).map(|_| format!("v{}", dice.random_range(0..number))).collect();
        let depends = Vec::from_iter(depends).join(", ");
        vm(
            name,
            &label,
            &format!(
                "{{image: {{{image}}}, cpus: {cpus}, priority: {priority}, dependsOn: [{depends}], memory: {memory}, rootDisk: {{size: {disk}}}, network: {network}, runPolicy: {policy}, terminationGracePeriodSeconds: {grace}}}"
            ),
        )
    }
}

pub(crate) fn vm(name: &str, label: &str, spec: &str) -> String {
    format!(
        "apiVersion: vmlet.dev/v1alpha1\nkind: VM\nmetadata: {{name: {name}, labels: {{l: {label}}}}}\nspec: {spec}\n"
    )
}

pub(crate) fn image(name: &str, reference: &str) -> String {
    format!(
        "apiVersion: vmlet.dev/v1alpha1\nkind: Image\nmetadata: {{name: {name}}}\nspec: {{source: {{oci: {{reference: '{reference}'}}}}}}\n"
    )
}

fn vm_key(number: u32) -> ObjectKey {
    ObjectKey::new(Kind::Vm, "default", format!("v{number}"))
}

fn image_key(number: u32) -> ObjectKey {
    ObjectKey::new(Kind::Image, "default", format!("i{number}"))
}

fn text(objects: &BTreeMap<ObjectKey, String>) -> String {
    objects.values().fold(String::new(), |mut text, object| {
        write!(text, "---\n{object}").unwrap();
        text
    })
}

/// Runs a schedule to its end; what is wrong then.
pub(crate) fn run(seed: u64, tell: bool) -> (Simulation, Vec<String>) {
    let mut sim = Schedule::new(seed).simulation(seed, tell);
    let mut wrong = Vec::new();
    // What was set off before the peace, such as a workload that is to end, comes to its end after it.
    sim.run_for(PEACE + Duration::from_secs(40));
    if let Err(open) = sim.run_until_converged(PATIENCE) {
        wrong.extend(open.into_iter().map(|open| format!("never converged: {open}")));
    } else {
        let starts = |sim: &Simulation| -> u32 {
            let vms = sim.objects().into_iter().map(|record| match record {
                Record::Vm(vm) => vm.starts,
                Record::Image(_) => 0,
            });
            vms.sum()
        };
        let before = starts(&sim);
        sim.run_for(REST);
        wrong.extend(sim.unsettled().into_iter().map(|open| format!("did not stay converged: {open}")));
        if starts(&sim) != before {
            wrong.push("something was started again although nothing happened".to_owned());
        }
    }
    wrong.extend(sim.violations().into_iter().map(|violation| format!("violation: {violation}")));
    (sim, wrong)
}
