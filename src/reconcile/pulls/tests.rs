use super::super::world::World;
use super::*;
use crate::testing::{EffectScript, Rig};

fn source() -> Source {
    Source::Oci("r/a:1".to_owned())
}

async fn digest(world: &World) -> Digest {
    world.images.resolve(&source()).await.unwrap()
}

/// Waits for the pull to come to an end.
async fn end(share: &mut Share) -> PullState {
    loop {
        match share.state() {
            PullState::Queued | PullState::Running(_) => share.changed().await,
            ended => return ended,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_comes_late_to_a_pull_finds_its_disk() {
    let rig = Rig::new();
    let world = World::new(rig.store.clone(), rig.parts(), rig.settings.clone());
    let digest = digest(&world).await;
    for _ in 0..2 {
        let mut share = world.pulls.join(&source(), &digest);
        assert_eq!(end(&mut share).await, PullState::Done);
    }
    let pulls = rig.effects().into_iter().filter(|effect| effect == "begin a pull").count();
    assert_eq!(pulls, 1, "{:?}", rig.effects());
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_no_retry_mends_is_not_tried_again() {
    let rig = Rig::new();
    let world = World::new(rig.store.clone(), rig.parts(), rig.settings.clone());
    let digest = digest(&world).await;
    for (lasting, retries) in [(true, false), (false, true)] {
        rig.script("pull", EffectScript { failures: 1, lasting, ..EffectScript::default() });
        let mut share = world.pulls.join(&source(), &digest);
        let PullState::Failed { retry, attempt: 1, .. } = end(&mut share).await else {
            panic!("{:?}", share.state())
        };
        assert_eq!(retry.is_some(), retries);
    }
}
