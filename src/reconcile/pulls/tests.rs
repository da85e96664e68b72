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

async fn staged(world: &World, digest: &Digest) -> StagedDisk {
    let (progress, _) = watch::channel(Progress::default());
    world.images.stage(&source(), digest, &progress).await.unwrap()
}

async fn publish(world: &World, digest: &Digest, claim: Uuid) {
    let (path, config) = ("/d".into(), crate::image::ImageConfig::default());
    world.store.publish_disk(digest, claim, path, Quantity::bytes(1), config).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_comes_late_to_an_install_waits_for_its_rival_and_installs_nothing() {
    let rig = Rig::new();
    let world = World::new(rig.store.clone(), rig.parts(), rig.settings.clone());
    let (digest, rival) = (digest(&world).await, Uuid::from_u128(1));
    world.store.claim_disk(&digest, rival).await.unwrap();
    let staged_disk = staged(&world, &digest).await;
    let late = install(world.images.clone(), world.store.clone(), staged_disk, Uuid::from_u128(2));
    let publication = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!rig.effects().contains(&"install".to_owned()), "{:?}", rig.effects());
        publish(&world, &digest, rival).await;
    };
    let (installed, ()) = tokio::join!(late, publication);
    installed.unwrap();
    let again = staged(&world, &digest).await;
    install(world.images.clone(), world.store.clone(), again, Uuid::from_u128(3)).await.unwrap();
    assert!(!rig.effects().contains(&"install".to_owned()), "{:?}", rig.effects());
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_being_removed_is_installed_after_that() {
    let rig = Rig::new();
    let world = World::new(rig.store.clone(), rig.parts(), rig.settings.clone());
    let digest = digest(&world).await;
    world.store.claim_disk(&digest, Uuid::nil()).await.unwrap();
    world.store.abandon_disk(&digest, Uuid::nil()).await.unwrap();
    let staged_disk = staged(&world, &digest).await;
    let late = install(world.images.clone(), world.store.clone(), staged_disk, Uuid::from_u128(2));
    let removal = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!rig.effects().contains(&"install".to_owned()), "{:?}", rig.effects());
        world.store.forget_disk(&digest).await.unwrap();
    };
    let (installed, ()) = tokio::join!(late, removal);
    installed.unwrap();
    assert!(world.store.disk(&digest).unwrap().is_ready());
}

#[tokio::test(start_paused = true)]
async fn who_asks_after_a_refusal_for_good_is_given_a_new_attempt() {
    let rig = Rig::new();
    let world = World::new(rig.store.clone(), rig.parts(), rig.settings.clone());
    let digest = digest(&world).await;
    rig.script("pull", EffectScript { failures: 1, lasting: true, ..EffectScript::default() });
    let mut first = world.pulls.join(&source(), &digest);
    assert!(matches!(end(&mut first).await, PullState::Failed { retry: None, .. }));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut second = world.pulls.join(&source(), &digest);
    assert_eq!(end(&mut second).await, PullState::Done);
}

#[tokio::test(start_paused = true)]
async fn pulls_that_are_over_are_forgotten_and_not_told_of() {
    let rig = Rig::new();
    let world = World::new(rig.store.clone(), rig.parts(), rig.settings.clone());
    let digest = digest(&world).await;
    let mut share = world.pulls.join(&source(), &digest);
    assert_eq!(world.pulls.running().len(), 1);
    assert_eq!(end(&mut share).await, PullState::Done);
    assert_eq!(world.pulls.running(), []);
    drop(share);
    let other: Digest = format!("sha256:{}", "e".repeat(64)).parse().unwrap();
    let _other = world.pulls.join(&Source::Oci("r/e:1".to_owned()), &other);
    assert_eq!(world.pulls.under_way.with(|pulls| pulls.len()), 1);
}

#[tokio::test(start_paused = true)]
async fn who_waits_hears_of_progress_of_attempts_and_of_the_line() {
    let mut rig = Rig::new();
    rig.settings.max_pulls = 1;
    let world = World::new(rig.store.clone(), rig.parts(), rig.settings.clone());
    let digest = digest(&world).await;
    rig.script("pull", EffectScript { failures: 2, ..EffectScript::default() });
    let mut share = world.pulls.join(&source(), &digest);
    let (mut told, mut attempts) = (Vec::new(), Vec::new());
    let mut held = None;
    loop {
        share.changed().await;
        match share.state() {
            PullState::Running(progress) => told.push(progress),
            PullState::Failed { attempt, .. } => {
                attempts.push(attempt);
                // Another takes the permit while this one waits for its next try.
                held = Some(world.pulls.shop.permits.acquire().await.unwrap());
            }
            PullState::Queued => drop(held.take().expect("it queues after a failure")),
            PullState::Done => break,
        }
    }
    assert_eq!(attempts, [1, 2]);
    assert!(told.iter().any(|progress| progress.bytes_done > 0), "{told:?}");
    assert!(told.windows(2).all(|pair| pair[0] != pair[1]), "nobody is told twice: {told:?}");
}
