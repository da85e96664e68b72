//! A schedule from a seed: folders that change, a world that misbehaves, and in the end peace.

mod folder;
mod objects;

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use vmlet::object::Quantity;
use vmlet::store::Record;
use vmlet::testing::{Action, EffectScript, ImageScript, Options, Simulation, Trouble};

use self::folder::{Folder, any_file};
use self::objects::{HOST_FILES, VMS, vm_key};
pub(crate) use self::objects::{image, image_of, vm};

/// When the trouble ends.
const PEACE: Duration = Duration::from_secs(90);
/// Far beyond every backoff, boot and grace period, and beyond what a promotion may take.
const PATIENCE: Duration = Duration::from_secs(3 * 3600);
/// What has converged is to stay as it is for so long.
const REST: Duration = Duration::from_secs(400);

/// Effects that may panic once.
const PANICS: [&str; 8] =
    ["resolve", "pull", "install", "prepare", "spawn", "attach", "cleanup", "make a kernel"];
/// A disk of the scripted world takes so much.
const DISK: u64 = 1 << 20;

/// What a schedule plays with beyond the plain. Few things together go deeper than all of them at once.
pub(crate) struct Play {
    /// Registries that are asked always, or never.
    policies: bool,
    /// Images with kernels of their own.
    kernels: bool,
    /// Images of folders, archives and files of the host.
    sources: bool,
    /// Images of stopped VMs.
    promotions: bool,
    /// Tags that stand for something else after a while.
    moving: bool,
    /// Two sources, and more conflicts.
    rivals: bool,
    /// Disks that fill up: that of base disks, and that of the store.
    full: bool,
}

impl Play {
    fn new(dice: &mut StdRng) -> Play {
        let share = *[0.0, 0.2, 0.4, 1.0].choose(dice).unwrap();
        let mut with = || dice.random_bool(share);
        Play {
            policies: with(),
            kernels: with(),
            sources: with(),
            promotions: with(),
            moving: with(),
            rivals: with(),
            full: with(),
        }
    }

    /// Whether images are other than plain.
    fn rich(&self) -> bool {
        self.policies || self.kernels || self.sources || self.promotions
    }
}

pub(crate) struct Schedule {
    dice: StdRng,
    play: Play,
}

impl Schedule {
    pub(crate) fn new(seed: u64) -> Self {
        // Not the world's own sequence.
        let mut dice = StdRng::seed_from_u64(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5EED);
        let play = Play::new(&mut dice);
        Schedule { dice, play }
    }

    /// The simulation, with everything planned.
    pub(crate) fn simulation(&mut self, seed: u64, tell: bool) -> Simulation {
        let trouble = self.trouble();
        let mut sim = Simulation::new(seed, self.options(seed, trouble, tell));
        self.script_registry(&mut sim);
        if self.dice.random_bool(0.1) {
            // A bug of the engine's parts.
            let panics = self.dice.random_range(1..4);
            let name = *PANICS.choose(&mut self.dice).unwrap();
            sim.script_effect(name, EffectScript { panics, ..EffectScript::default() });
        }
        let mut folder = Folder::new(&mut self.dice, &self.play);
        for path in folder.paths() {
            sim.write(path, &folder.text(path));
        }
        for _ in 0..self.dice.random_range(2..10) {
            let at = self.time(PEACE.as_secs());
            self.plan(&mut sim, at);
        }
        self.play_with_images(&mut sim);
        // What is refused for good waits for an edit: no refusal comes after the last one.
        let mended = Trouble { lasting: 0.0, ..trouble };
        sim.at(PEACE - Duration::from_secs(10), Action::Trouble(Box::new(mended)));
        self.edits(&mut sim, &mut folder);
        sim.at(PEACE, Action::Trouble(Box::new(Trouble::NONE)));
        sim
    }

    fn options(&mut self, seed: u64, trouble: Trouble, tell: bool) -> Options {
        let mut options = Options { tell_effects: tell, trouble, ..Options::default() };
        options.history = *[1, 3, 10, 8192].choose(&mut self.dice).unwrap();
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
        // Not by the dice, so that neighbours differ.
        options.settings.retention.grace = Duration::from_secs([0, 0, 20, 300][(seed % 4) as usize]);
        options
    }

    fn time(&mut self, seconds: u64) -> Duration {
        Duration::from_millis(self.dice.random_range(0..seconds * 1000))
    }

    fn trouble(&mut self) -> Trouble {
        let rough = Trouble::ROUGH;
        let longest = rough.longest.mul_f64(*[0.1, 1.0, 1.0, 8.0].choose(&mut self.dice).unwrap());
        let mut some = |share: f64| share * *[0.0, 0.0, 1.0, 1.0, 2.5].choose(&mut self.dice).unwrap();
        Trouble {
            slow: some(rough.slow).min(1.0),
            longest,
            failures: some(rough.failures),
            lasting: some(rough.lasting),
            slow_flushes: some(rough.slow_flushes),
            store_faults: some(rough.store_faults),
            crashes: some(rough.crashes),
            hangs: some(rough.hangs),
            panics: some(rough.panics),
            exits: some(rough.exits),
            deaf: some(rough.deaf),
            lingering: some(rough.lingering),
            undying: some(rough.undying),
            broken_links: some(rough.broken_links),
            late: some(rough.late),
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
            4 if self.play.full => Action::FillStore { lasts: self.time(30) },
            4 => Action::FailStore,
            5 | 6 => Action::KillVmm(key),
            _ => Action::EndWorkload(key, self.dice.random_range(0..2)),
        };
        sim.at(at, action);
    }

    /// Tags move, files change, and the room for base disks comes and goes.
    fn play_with_images(&mut self, sim: &mut Simulation) {
        if self.play.moving {
            for reference in ["r/a:1", "r/a:2"] {
                let script =
                    ImageScript::new(*['a', 'e', 'f'].choose(&mut self.dice).unwrap(), self.time(20));
                sim.at(self.time(PEACE.as_secs()), Action::ScriptImage(reference.to_owned(), script));
            }
        }
        if self.play.sources && self.dice.random() {
            let script = |changed| {
                let script = ImageScript { changed, ..ImageScript::of(HOST_FILES) };
                Action::ScriptImage(HOST_FILES.to_owned(), script)
            };
            sim.at(self.time(PEACE.as_secs()), script(true));
            sim.at(PEACE, script(false));
        }
        if self.play.full {
            let room = |disks: u64| Action::Room { total: disks * DISK, taken: 0 };
            sim.at(self.time(PEACE.as_secs() / 2), room(self.dice.random_range(1..6)));
            sim.at(PEACE, room(1000));
        }
    }

    fn edits(&mut self, sim: &mut Simulation, folder: &mut Folder) {
        let mut edits: Vec<Duration> =
            (0..self.dice.random_range(0..6)).map(|_| self.time(PEACE.as_secs())).collect();
        edits.sort();
        for at in edits {
            for path in folder.edit(&mut self.dice, &self.play) {
                self.write(sim, at, path, folder);
            }
            if self.dice.random_bool(0.2) {
                self.blink(sim, at, folder);
            }
        }
        // A file that was left broken is whole in the end.
        for path in folder.paths() {
            self.write_whole(sim, PEACE, path, folder);
        }
    }

    /// A file goes and comes back before its objects are gone.
    fn blink(&mut self, sim: &mut Simulation, at: Duration, folder: &Folder) {
        let path = any_file(&mut self.dice, &self.play);
        let text = folder.text(path);
        if text.is_empty() {
            return;
        }
        sim.at(at, Action::Remove { path: path.to_owned() });
        let back = at + Duration::from_millis(self.dice.random_range(0..4000));
        sim.at(back.min(PEACE), Action::Write { path: path.to_owned(), text });
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
        let (path, text) = (path.to_owned(), folder.text(path));
        if text.is_empty() && self.dice.random() {
            sim.at(at, Action::Remove { path });
        } else {
            sim.at(at, Action::Write { path, text });
        }
    }
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
