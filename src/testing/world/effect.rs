//! What a daemon does to the world: each effect takes its time, may fail, before or after it took place, and is a
//! moment at which the daemon may die.

use std::time::Duration;

use rand::Rng;

use super::{State, World};
use crate::object::ObjectKey;
use crate::testing::timeline::Teller;
use crate::testing::trouble::{EffectScript, Trouble};

/// The longest pause of an effect that is not slow: below a millisecond time stands still, and only the
/// order changes.
const YIELDS: u32 = 4;

/// Something that a daemon does to the world.
#[derive(Clone, Debug)]
pub(super) struct Effect {
    pub(super) name: &'static str,
    pub(super) object: Option<ObjectKey>,
    /// What a lasting failure is remembered by; none cannot fail for good.
    pub(super) fate: Option<String>,
}

/// Why an effect did not take place, or is said not to have.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) transient: bool,
}

/// What chance, or a script, has in store for an effect.
struct Luck {
    before: Pause,
    after: Pause,
    failure: Option<Failure>,
    panics: bool,
}

#[derive(Clone, Copy)]
enum Pause {
    Yields(u32),
    Sleep(Duration),
}

struct Failure {
    lasting: bool,
    /// It took place nevertheless.
    done: bool,
}

impl World {
    /// Does something to the world, as chance has it.
    pub(super) async fn effect<T>(
        &self,
        effect: &Effect,
        act: impl FnOnce(&mut State) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        self.survive(effect, "before").await;
        let luck = self.lock().luck(effect);
        luck.before.take().await;
        self.not_dead().await;
        assert!(!luck.panics, "{effect} panics, as scripted");
        if let Some(Failure { done: false, lasting }) = luck.failure {
            return Err(self.lock().fail(effect, lasting));
        }
        let value = {
            let mut state = self.lock();
            let value = act(&mut state);
            state.tell_effect(effect, value.as_ref().err().map(|refusal| refusal.message.as_str()));
            value
        }?;
        self.survive(effect, "after").await;
        luck.after.take().await;
        self.not_dead().await;
        match luck.failure {
            Some(Failure { lasting, .. }) => {
                drop(value);
                Err(self.lock().fail(effect, lasting))
            }
            None => Ok(value),
        }
    }

    async fn survive(&self, effect: &Effect, when: &str) {
        if self.moment(|| format!("{when} {effect}")) {
            std::future::pending().await
        }
    }

    async fn not_dead(&self) {
        if self.lock().dead {
            std::future::pending().await
        }
    }
}

impl std::fmt::Display for Effect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.object {
            Some(object) => write!(f, "{} of {object}", self.name),
            None => f.write_str(self.name),
        }
    }
}

impl Pause {
    async fn take(self) {
        match self {
            Pause::Yields(times) => {
                for _ in 0..times {
                    tokio::task::yield_now().await;
                }
            }
            Pause::Sleep(time) => tokio::time::sleep(time).await,
        }
    }
}

impl State {
    fn pause(&mut self) -> Pause {
        let Trouble { slow, longest, .. } = self.trouble;
        if slow == 0.0 {
            return Pause::Yields(0);
        }
        if self.chance(slow) {
            return Pause::Sleep(self.while_(longest));
        }
        Pause::Yields(self.dice.random_range(0..=YIELDS))
    }

    fn luck(&mut self, effect: &Effect) -> Luck {
        let (before, after) = (self.pause(), self.pause());
        let failure = self.chance(self.trouble.failures).then(|| Failure {
            lasting: effect.fate.is_some() && self.chance(self.trouble.lasting),
            done: self.dice.random(),
        });
        self.scripted(effect, Luck { before, after, failure, panics: false })
    }

    fn scripted(&mut self, effect: &Effect, chance: Luck) -> Luck {
        let name = effect.to_string();
        let name = if self.effect_scripts.contains_key(&name) { name.as_str() } else { effect.name };
        let Some(script) = self.effect_scripts.get_mut(name) else { return chance };
        let EffectScript { takes, failures, done, lasting, panics } = *script;
        script.panics = panics.saturating_sub(1);
        script.failures = failures.saturating_sub(u32::from(panics == 0));
        Luck {
            before: if takes.is_zero() { chance.before } else { Pause::Sleep(takes) },
            failure: if failures > 0 { Some(Failure { lasting, done }) } else { chance.failure },
            panics: panics > 0,
            ..chance
        }
    }

    /// Whether something that is no effect, and cannot fail, panics by its script.
    pub(super) fn scripted_panic(&mut self, name: &str) -> bool {
        let Some(script) = self.effect_scripts.get_mut(name) else { return false };
        let panics = script.panics > 0;
        script.panics = script.panics.saturating_sub(1);
        panics
    }

    fn fail(&mut self, effect: &Effect, lasting: bool) -> Refusal {
        if let Some(fate) = effect.fate.clone().filter(|_| lasting) {
            self.doomed.insert(fate);
        }
        let how = if lasting { "fails for good" } else { "fails" };
        self.tell_effect(effect, Some(how));
        Refusal {
            reason: "Scripted",
            message: format!("{} {how}, as scripted", effect.name),
            transient: !lasting,
        }
    }

    fn tell_effect(&mut self, effect: &Effect, failure: Option<&str>) {
        if self.tells {
            let text = match failure {
                Some(failure) => format!("{}: {failure}", effect.name),
                None => effect.name.to_owned(),
            };
            self.tell(effect.object.clone(), Teller::World, text);
        }
    }
}
