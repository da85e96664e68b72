//! Trouble by order: what the next tries of a step come to.

use std::collections::BTreeMap;

use super::{Effect, Refusal, State, World};
use crate::testing::trouble::{Mishap, Step};

/// What is ordered, by the step's name.
#[derive(Default)]
pub(super) struct Orders(BTreeMap<&'static str, (usize, Mishap)>);

impl Orders {
    fn next(&mut self, name: &str) -> Option<Mishap> {
        let (times, mishap) = self.0.get_mut(name)?;
        *times = times.checked_sub(1)?;
        Some(*mishap)
    }
}

impl State {
    /// The next so many tries of a step go wrong, whosever they are; none calls an order off.
    pub(in crate::testing) fn order(&mut self, step: Step, times: usize, mishap: Mishap) {
        self.orders.0.insert(step.name(), (times, mishap));
    }
}

impl World {
    /// Whether an effect goes wrong by order.
    pub(super) fn ordered(&self, effect: &Effect) -> Result<(), Refusal> {
        let (name, ordered) = (effect.name, self.lock().orders.next(effect.name));
        match ordered {
            None => Ok(()),
            Some(Mishap::Panics) => panic!("{name} panics as scripted"),
            Some(Mishap::Fails) => {
                let message = format!("{name} fails as scripted");
                self.lock().tell_effect(effect, Some(&message));
                Err(Refusal { reason: "Scripted", message, transient: true })
            }
        }
    }
}
