//! What the files of a schedule hold, and how that is edited.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use vmlet::object::ObjectKey;

use super::Play;
use super::objects::{VMS, image, image_key, object, vm_key};

/// Files of the manifests folder; the last is another source's.
const FILES: [&str; 5] = ["a.yaml", "b.yaml", "c.yaml", "sub/d.yaml", "/simulated/others/e.yaml"];

/// What each file declares, by object.
#[derive(Default)]
pub(super) struct Folder(BTreeMap<&'static str, BTreeMap<ObjectKey, String>>);

impl Folder {
    /// A folder as a schedule begins with it.
    pub(super) fn new(dice: &mut StdRng, play: &Play) -> Folder {
        let mut folder = Folder::default();
        for (number, reference) in [(0, "r/a:1"), (1, "r/b:1")] {
            if dice.random_bool(0.8) {
                let key = image_key(number);
                let rich = play.rich() && dice.random_bool(0.6);
                let text = if rich { object(dice, play, &key) } else { image(&key.name, reference) };
                folder.insert(any_file(dice, play), key, text);
            }
        }
        for number in 0..dice.random_range(1..VMS) {
            let key = vm_key(number);
            let text = object(dice, play, &key);
            folder.insert(any_file(dice, play), key, text);
        }
        folder
    }

    fn insert(&mut self, path: &'static str, key: ObjectKey, text: String) {
        self.0.entry(path).or_default().insert(key, text);
    }

    /// The files that declare something, or did.
    pub(super) fn paths(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().copied()
    }

    /// What a file says; empty if it declares nothing.
    pub(super) fn text(&self, path: &str) -> String {
        let objects = self.0.get(path).into_iter().flat_map(BTreeMap::values);
        objects.fold(String::new(), |mut text, object| {
            write!(text, "---\n{object}").unwrap();
            text
        })
    }

    /// Changes something; returns the files that changed.
    pub(super) fn edit(&mut self, dice: &mut StdRng, play: &Play) -> Vec<&'static str> {
        let path = any_file(dice, play);
        let key = if dice.random_bool(0.3) {
            image_key(dice.random_range(0..3))
        } else {
            vm_key(dice.random_range(0..VMS))
        };
        // Mostly where it is already: one name has one place.
        let home = self.0.iter().find(|(_, objects)| objects.contains_key(&key)).map(|(path, _)| *path);
        let Some(home) = home else { return self.add(dice, play, path, key) };
        match dice.random_range(0..5) {
            0 => {
                self.0.get_mut(home).unwrap().remove(&key);
                vec![home]
            }
            1 => {
                let moved = self.0.get_mut(home).unwrap().remove(&key).unwrap();
                self.insert(path, key, moved);
                vec![home, path]
            }
            _ => {
                let text = object(dice, play, &key);
                self.insert(home, key, text);
                vec![home]
            }
        }
    }

    fn add(
        &mut self,
        dice: &mut StdRng,
        play: &Play,
        path: &'static str,
        key: ObjectKey,
    ) -> Vec<&'static str> {
        let text = object(dice, play, &key);
        self.insert(path, key.clone(), text);
        let mut changed = vec![path];
        if dice.random_bool(if play.rivals { 0.4 } else { 0.05 }) {
            // A conflict: two files declare it.
            let (rival, text) = (any_file(dice, play), object(dice, play, &key));
            self.insert(rival, key, text);
            changed.push(rival);
        }
        changed
    }
}

pub(super) fn any_file(dice: &mut StdRng, play: &Play) -> &'static str {
    let own = &FILES[..FILES.len() - 1];
    if play.rivals { FILES.choose(dice).unwrap() } else { own.choose(dice).unwrap() }
}
