//! The write-and-delete protocol of `docs/format.md` as a model, beside the real thing: writers, sweepers and forgetters that
//! run in any order, stop for long, die at any point, and lose acknowledgements, checked after every step against
//! "each backup that was reported successful and not forgotten has its manifest, its seal and all its chunks, and each whose pin was
//! acknowledged its manifest and all its chunks".
//!
//! The correct protocol must lose nothing, and each of fourteen mistakes must be found, or the model is blind.
//! `STILLFRAME_MODEL_SEEDS=200000 cargo test --release -p stillframe-repo --test protocol_model` runs longer.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

type Id = u32;
/// A set of the chunks a, b, c.
type Chunks = BTreeSet<char>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    /// The writer looks first and puts its manifest afterwards.
    LookFirst,
    /// It lists packs before marks.
    PacksFirst,
    /// It relies on marked packs.
    IgnoreMarks,
    /// It does not look whether the base's manifest is still there.
    NoBaseCheck,
    /// It believes the index without listing packs.
    TrustIndex,
    /// The sweeper removes the marks of others without taking over their packs.
    NoTakeover,
    /// It goes on although another sweeper began at the same time.
    NoGiveway,
    /// It does not list the manifests again once its mark is there.
    NoRelist,
    /// Somebody removes a mark that is not his.
    RemoveForeign,
    /// A pack that may or may not have arrived is put again under its name.
    PutsPackAgain,
    /// Who pins does not look for the seal once the pin is there.
    PinLooksFirst,
    /// Who pins and finds the seal gone takes back the pin, which may be another's by then.
    PinTakesBack,
    /// Who forgets does not look for a pin again once the seal is gone.
    ForgetLooksOnce,
    /// Who takes back what was not finished, or was left by the dead, does not look for a pin: it may have had a seal.
    TakesBackPinned,
}

const MISTAKES: [Mistake; 14] = [
    Mistake::LookFirst,
    Mistake::PacksFirst,
    Mistake::IgnoreMarks,
    Mistake::NoBaseCheck,
    Mistake::TrustIndex,
    Mistake::NoTakeover,
    Mistake::NoGiveway,
    Mistake::NoRelist,
    Mistake::RemoveForeign,
    Mistake::PutsPackAgain,
    Mistake::PinLooksFirst,
    Mistake::PinTakesBack,
    Mistake::ForgetLooksOnce,
    Mistake::TakesBackPinned,
];

#[derive(Default)]
struct Store {
    packs: BTreeMap<Id, Chunks>,
    marks: BTreeMap<Id, BTreeSet<Id>>,
    manifests: BTreeMap<Id, Chunks>,
    sealed: BTreeSet<Id>,
    /// Hints: every pack ever written, also those that are gone.
    index: BTreeMap<Id, Chunks>,
    /// Backups reported successful and not forgotten.
    reported: BTreeSet<Id>,
    forgotten: BTreeSet<Id>,
    pins: BTreeSet<Id>,
    /// Those whose pin was acknowledged, and that nobody has begun to unpin.
    promised: BTreeSet<Id>,
    /// Manifests whose writers live and have not come to their end.
    at_work: BTreeSet<Id>,
    /// Backups that somebody forgets, or has begun to.
    being_forgotten: BTreeSet<Id>,
    /// Backups that somebody wants gone while the writer may put the seal, or another one who forgets it may put it back, when it was looked for
    /// already: a pin in this very moment is lost with them. The page says so.
    disputed: BTreeSet<Id>,
    /// Of machines: manifests that lose their seal, or have none yet, and whose owner is gone.
    left: BTreeSet<Id>,
    last_id: Id,
}

impl Store {
    fn new_id(&mut self) -> Id {
        self.last_id += 1;
        self.last_id
    }

    fn violation(&self) -> Option<String> {
        let have: Chunks = self.packs.values().flatten().copied().collect();
        let is_lost = |backup: &Id| self.manifests.get(backup).is_none_or(|need| !need.is_subset(&have));
        if let Some(backup) = self.promised.iter().find(|backup| is_lost(backup)) {
            return Some(format!("backup {backup} is pinned and lost"));
        }
        self.reported.iter().find_map(|backup| match self.manifests.get(backup) {
            None => Some(format!("backup {backup} lost its manifest")),
            Some(_) if !self.sealed.contains(backup) => Some(format!("backup {backup} lost its seal")),
            Some(need) if !need.is_subset(&have) => Some(format!("backup {backup} lost chunks")),
            Some(_) => None,
        })
    }
}

/// What a process sees of the world: one request to the store per step, and between two any other process may run,
/// or this one may be gone.
#[derive(Clone)]
struct World {
    store: Rc<RefCell<Store>>,
    rng: Rc<RefCell<StdRng>>,
    mistake: Option<Mistake>,
}

/// The store did not answer: the request may or may not have had its effect.
struct NoAnswer;

impl World {
    fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    fn chance(&self, probability: f64) -> bool {
        self.rng.borrow_mut().random_bool(probability)
    }

    fn pick<T: Clone>(&self, among: &[T]) -> Option<T> {
        if among.is_empty() {
            return None;
        }
        let at = self.rng.borrow_mut().random_range(0..among.len());
        Some(among[at].clone())
    }

    /// A read or list: what it says was true at that moment.
    async fn look<T>(&self, request: impl FnOnce(&Store) -> T) -> T {
        let seen = request(&self.store.borrow());
        pause().await;
        seen
    }

    /// A put or delete. One in twenty is not acknowledged; half of those have had their effect. The caller tries again or gives up. That is
    /// harmless for all but packs.
    async fn change(&self, request: impl Fn(&mut Store)) -> Result<(), NoAnswer> {
        loop {
            let done = self.try_to_change(&request).await;
            if done.is_ok() || self.chance(0.5) {
                return done;
            }
        }
    }

    /// Once.
    async fn try_to_change(&self, request: impl Fn(&mut Store)) -> Result<(), NoAnswer> {
        let answered = !self.chance(0.05);
        if answered || self.chance(0.5) {
            request(&mut self.store.borrow_mut());
        }
        pause().await;
        if answered { Ok(()) } else { Err(NoAnswer) }
    }
}

/// Lets others run.
async fn pause() {
    let mut first = true;
    std::future::poll_fn(|_| if std::mem::take(&mut first) { Poll::Pending } else { Poll::Ready(()) }).await;
}

/// The manifest that a writer has put, for as long as it lives.
struct AtWork {
    world: World,
    manifest: RefCell<Option<Id>>,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        if let Some(manifest) = *self.manifest.borrow() {
            self.world.store.borrow_mut().at_work.remove(&manifest);
        }
    }
}

async fn dawdle(world: &World) {
    let steps = world.rng.borrow_mut().random_range(0..80);
    for _ in 0..steps {
        pause().await;
    }
}

async fn writer(world: World) {
    let at_work = AtWork { world: world.clone(), manifest: RefCell::default() };
    if write(&world, &at_work.manifest).await.is_err() {
        // The real writer takes back what it put when a request fails; that may fail, too.
        let id = *at_work.manifest.borrow();
        if let Some(id) = id {
            let _ = take_away(&world, id, Mistake::TakesBackPinned).await;
        }
    }
}

/// The seal, then the manifest; unless somebody pins it meanwhile, who has found the seal then.
async fn take_away(world: &World, backup: Id, mistake: Mistake) -> Result<(), NoAnswer> {
    world.change(|store| _ = store.sealed.remove(&backup)).await?;
    if world.look(|store| store.pins.contains(&backup)).await && !world.makes(mistake) {
        return world.change(|store| seal_again(store, backup)).await;
    }
    world.change(|store| drop(store.manifests.remove(&backup))).await
}

async fn put_pack(world: &World, known: &mut BTreeMap<Id, Chunks>, chunks: Chunks) -> Result<(), NoAnswer> {
    let pack = loop {
        let pack = world.store.borrow_mut().new_id();
        let put = |store: &mut Store| {
            store.packs.insert(pack, chunks.clone());
            store.index.insert(pack, chunks.clone());
        };
        if world.makes(Mistake::PutsPackAgain) {
            while world.try_to_change(put).await.is_err() {
                // It takes long until it is tried again: two sweepers must come and one of them go meanwhile.
                dawdle(world).await;
            }
            break pack;
        }
        match world.try_to_change(put).await {
            Ok(()) => break pack,
            // Under its old name it might come back after it was condemned, and be deleted when others rely on it already.
            Err(NoAnswer) if world.chance(0.5) => {}
            Err(NoAnswer) => return Err(NoAnswer),
        }
    };
    known.insert(pack, chunks);
    Ok(())
}

async fn write(world: &World, backup: &RefCell<Option<Id>>) -> Result<(), NoAnswer> {
    let mut need: Chunks = "abc".chars().filter(|_| world.chance(0.6)).collect();
    if need.is_empty() {
        need.insert('a');
    }
    // A cached index, perhaps stale, perhaps not whole.
    let mut known = world.look(|store| store.index.clone()).await;
    if world.chance(0.3) {
        let keep = world.rng.borrow_mut().random_range(0..=known.len());
        known = known.into_iter().take(keep).collect();
    }
    let mut base = None;
    if world.chance(0.5) {
        let sealed: Vec<Id> = world.store.borrow().sealed.iter().copied().collect();
        if let Some(id) = world.pick(&sealed) {
            base = world.look(|store| store.manifests.get(&id).map(|chunks| (id, chunks.clone()))).await;
        }
    }
    let mut taken_over: Chunks =
        base.iter().flat_map(|(_, chunks)| chunks).filter(|chunk| need.contains(chunk)).copied().collect();
    let is_known = |known: &BTreeMap<Id, Chunks>, chunk: &char| known.values().any(|has| has.contains(chunk));
    let missing: Chunks = need
        .iter()
        .filter(|chunk| !taken_over.contains(chunk) && !is_known(&known, chunk))
        .copied()
        .collect();
    if !missing.is_empty() {
        put_pack(world, &mut known, missing).await?;
    }
    let mut previous = None;
    let manifest = loop {
        let manifest = world.store.borrow_mut().new_id();
        *backup.borrow_mut() = Some(manifest);
        world.store.borrow_mut().at_work.insert(manifest);
        let put = |store: &mut Store| drop(store.manifests.insert(manifest, need.clone()));
        if !world.makes(Mistake::LookFirst) {
            world.change(put).await?;
        }
        if let Some(previous) = previous.take() {
            world.change(|store| drop(store.manifests.remove(&previous))).await?;
        }
        let list_packs = |store: &Store| store.packs.keys().copied().collect::<BTreeSet<Id>>();
        let early = if world.makes(Mistake::PacksFirst) { Some(world.look(list_packs).await) } else { None };
        let marked: BTreeSet<Id> =
            world.look(|store| store.marks.values().flatten().copied().collect()).await;
        let packs = match early {
            Some(packs) => packs,
            None => world.look(list_packs).await,
        };
        let manifests: BTreeSet<Id> = world.look(|store| store.manifests.keys().copied().collect()).await;
        if let Some((base, _)) = &base
            && !manifests.contains(base)
            && !world.makes(Mistake::NoBaseCheck)
        {
            taken_over.clear();
        }
        let ignores = world.makes(Mistake::IgnoreMarks);
        let usable = |pack: &Id| packs.contains(pack) && (ignores || !marked.contains(pack));
        let has = |chunk: &char| known.iter().any(|(pack, chunks)| usable(pack) && chunks.contains(chunk));
        let missing: Chunks =
            need.iter().filter(|chunk| !taken_over.contains(chunk) && !has(chunk)).copied().collect();
        if missing.is_empty() || world.makes(Mistake::TrustIndex) {
            if world.makes(Mistake::LookFirst) {
                world.change(put).await?;
            }
            break manifest;
        }
        put_pack(world, &mut known, missing).await?;
        previous = Some(manifest);
    };
    world.change(|store| _ = store.sealed.insert(manifest)).await?;
    let mut store = world.store.borrow_mut();
    if !store.manifests.contains_key(&manifest) {
        store.sealed.remove(&manifest);
    } else if !store.forgotten.contains(&manifest) {
        store.reported.insert(manifest);
    }
    Ok(())
}

async fn sweeper(world: World) {
    // One that gets no answer stops where it is, like one that dies: its mark stays.
    let _ = sweep(&world).await;
}

async fn sweep(world: &World) -> Result<(), NoAnswer> {
    let (own, marks_before, condemned, mut manifests) = loop {
        let own = world.store.borrow_mut().new_id();
        let marks_before = world.look(|store| store.marks.clone()).await;
        let manifests = world.look(|store| store.manifests.clone()).await;
        let packs = world.look(|store| store.packs.clone()).await;
        let live: Chunks = manifests.values().flatten().copied().collect();
        let mut condemned: BTreeSet<Id> = packs
            .iter()
            .filter(|(_, chunks)| chunks.is_disjoint(&live) || world.chance(0.3))
            .map(|(pack, _)| *pack)
            .collect();
        if !world.makes(Mistake::NoTakeover) {
            condemned.extend(marks_before.values().flatten().filter(|pack| packs.contains_key(pack)));
        }
        if condemned.is_empty() && marks_before.is_empty() {
            return Ok(());
        }
        world.change(|store| drop(store.marks.insert(own, condemned.clone()))).await?;
        let marks: BTreeSet<Id> = world.look(|store| store.marks.keys().copied().collect()).await;
        let newcomer = marks.iter().any(|mark| *mark != own && !marks_before.contains_key(mark));
        if !newcomer || world.makes(Mistake::NoGiveway) {
            break (own, marks_before, condemned, manifests);
        }
        world.change(|store| drop(store.marks.remove(&own))).await?;
        if world.chance(0.3) {
            return Ok(());
        }
    };
    if !world.makes(Mistake::NoRelist) {
        manifests = world.look(|store| store.manifests.clone()).await;
    }
    for chunk in manifests.values().flatten() {
        let packs = world.look(|store| store.packs.clone()).await;
        let has = |(_, chunks): &(&Id, &Chunks)| chunks.contains(chunk);
        let outside = packs.iter().filter(has).any(|(pack, _)| !condemned.contains(pack));
        if !outside && packs.iter().any(|pack| has(&pack)) {
            put_pack(world, &mut BTreeMap::new(), Chunks::from([*chunk])).await?;
        }
    }
    for pack in &condemned {
        if world.makes(Mistake::PutsPackAgain) && world.chance(0.2) {
            dawdle(world).await;
        }
        world.change(|store| drop(store.packs.remove(pack))).await?;
    }
    world.change(|store| drop(store.marks.remove(&own))).await?;
    for mark in marks_before.keys() {
        world.change(|store| drop(store.marks.remove(mark))).await?;
    }
    Ok(())
}

async fn forgetter(world: World) {
    let unsealed_too = world.chance(0.15);
    let candidates: Vec<Id> = world
        .look(|store| {
            if unsealed_too {
                store.manifests.keys().copied().collect()
            } else {
                store.sealed.iter().copied().collect()
            }
        })
        .await;
    if let Some(backup) = world.pick(&candidates) {
        let _ = forget(&world, backup).await;
    }
}

async fn forget(world: &World, backup: Id) -> Result<(), NoAnswer> {
    if world.look(|store| store.pins.contains(&backup)).await {
        return Ok(());
    }
    // From here on nobody may expect the backup to be there who has not pinned it; and while its writer is at work, or somebody else
    // forgets it, nobody at all.
    {
        let mut store = world.store.borrow_mut();
        store.forgotten.insert(backup);
        store.reported.remove(&backup);
        if store.at_work.contains(&backup) || !store.being_forgotten.insert(backup) {
            store.disputed.insert(backup);
            store.promised.remove(&backup);
        }
    }
    let note = Note { world: world.clone(), backup };
    take_away(world, backup, Mistake::ForgetLooksOnce).await?;
    world.store.borrow_mut().being_forgotten.remove(&backup);
    note.settle();
    Ok(())
}

/// A seal's content follows from the manifest: where that is gone, there is nothing to be sealed.
fn seal_again(store: &mut Store, backup: Id) {
    if store.manifests.contains_key(&backup) {
        store.sealed.insert(backup);
    }
}

/// On the machine of whoever takes a seal away. It stays when its owner dies, or gives up.
struct Note {
    world: World,
    backup: Id,
}

impl Note {
    fn settle(self) {
        drop(self.world.clone());
        std::mem::forget(self);
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        self.world.store.borrow_mut().left.insert(self.backup);
    }
}

/// The next run on a machine on which somebody died.
async fn clearer(world: World) {
    let left: Vec<Id> = world.store.borrow().left.iter().copied().collect();
    if let Some(backup) = world.pick(&left) {
        world.store.borrow_mut().left.remove(&backup);
        let note = Note { world: world.clone(), backup };
        if clear(&world, backup).await.is_ok() {
            note.settle();
        }
    }
}

async fn clear(world: &World, backup: Id) -> Result<(), NoAnswer> {
    if world.look(|store| store.sealed.contains(&backup) && store.manifests.contains_key(&backup)).await {
        return Ok(());
    }
    take_away(world, backup, Mistake::TakesBackPinned).await
}

async fn pinner(world: World) {
    let sealed: Vec<Id> = world.store.borrow().sealed.iter().copied().collect();
    if let Some(backup) = world.pick(&sealed) {
        let _ = pin(&world, backup).await;
    }
}

async fn pin(world: &World, backup: Id) -> Result<(), NoAnswer> {
    let is_there = |store: &Store| store.sealed.contains(&backup) && store.manifests.contains_key(&backup);
    if !world.look(is_there).await {
        return Ok(());
    }
    world.change(|store| _ = store.pins.insert(backup)).await?;
    // From the moment of this look on it is promised, whenever its caller learns of it; unless somebody has taken it away again already.
    let is_good = {
        let mut store = world.store.borrow_mut();
        let is_good = world.makes(Mistake::PinLooksFirst) || is_there(&store);
        if is_good && store.pins.contains(&backup) && !store.disputed.contains(&backup) {
            store.promised.insert(backup);
        }
        is_good
    };
    pause().await;
    let is_gone = async || !world.look(|store| store.manifests.contains_key(&backup)).await;
    if !is_good && (world.makes(Mistake::PinTakesBack) || is_gone().await) {
        world.change(|store| _ = store.pins.remove(&backup)).await?;
    }
    Ok(())
}

async fn unpinner(world: World) {
    let pins: Vec<Id> = world.store.borrow().pins.iter().copied().collect();
    if let Some(backup) = world.pick(&pins) {
        world.store.borrow_mut().promised.remove(&backup);
        let _ = world
            .change(|store| {
                store.pins.remove(&backup);
                // Of two that pin and unpin at the same time the later one counts.
                store.promised.remove(&backup);
            })
            .await;
    }
}

async fn remover_of_foreign_marks(world: World) {
    let marks: Vec<Id> = world.look(|store| store.marks.keys().copied().collect()).await;
    if let Some(mark) = world.pick(&marks) {
        let _ = world.change(|store| drop(store.marks.remove(&mark))).await;
    }
}

struct Process {
    future: Pin<Box<dyn Future<Output = ()>>>,
    speed: f64,
}

fn spawn(world: &World) -> Process {
    let kinds = if world.makes(Mistake::RemoveForeign) { 14 } else { 13 };
    let kind = world.rng.borrow_mut().random_range(0..kinds);
    let future: Pin<Box<dyn Future<Output = ()>>> = match kind {
        0..4 => Box::pin(writer(world.clone())),
        4..7 => Box::pin(sweeper(world.clone())),
        7..9 => Box::pin(forgetter(world.clone())),
        9..11 => Box::pin(pinner(world.clone())),
        11 => Box::pin(unpinner(world.clone())),
        12 => Box::pin(clearer(world.clone())),
        _ => Box::pin(remover_of_foreign_marks(world.clone())),
    };
    Process { future, speed: world.pick(&[1.0, 1.0, 3.0, 0.1]).expect("not empty") }
}

/// One random history of 300 steps. Returns how many backups are there at its end, or what was lost.
fn run(seed: u64, mistake: Option<Mistake>) -> Result<usize, String> {
    let rng = Rc::new(RefCell::new(StdRng::seed_from_u64(seed)));
    let world = World { store: Rc::default(), rng, mistake };
    let mut processes: Vec<Process> = Vec::new();
    let mut context = Context::from_waker(Waker::noop());
    for step in 0..300 {
        if processes.len() < 5 && world.chance(0.25) {
            processes.push(spawn(&world));
        }
        let total: f64 = processes.iter().map(|process| process.speed).sum();
        if processes.is_empty() {
            continue;
        }
        let mut point = world.rng.borrow_mut().random_range(0.0..total);
        let mut chosen = 0;
        while chosen + 1 < processes.len() && point >= processes[chosen].speed {
            point -= processes[chosen].speed;
            chosen += 1;
        }
        if world.chance(0.01) {
            drop(processes.remove(chosen)); // it dies
            continue;
        }
        if world.chance(0.05) {
            // It stops for long, or wakes up.
            processes[chosen].speed = world.pick(&[0.02, 1.0, 3.0]).expect("not empty");
        }
        if processes[chosen].future.as_mut().poll(&mut context).is_ready() {
            drop(processes.remove(chosen));
        }
        if let Some(violation) = world.store.borrow().violation() {
            return Err(format!("seed {seed}, step {step}: {violation}"));
        }
    }
    let alive = world.store.borrow().reported.len();
    Ok(alive)
}

fn seeds() -> u64 {
    std::env::var("STILLFRAME_MODEL_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(6_000)
}

#[test]
fn the_protocol_loses_nothing_whoever_stops_dies_or_gets_no_answer() {
    let mut alive = 0;
    for seed in 0..seeds() {
        alive += run(seed, None).unwrap_or_else(|violation| panic!("{violation}"));
    }
    assert!(alive as u64 > seeds() / 2, "backups must come to be, or nothing was tested: {alive}");
}

#[test]
fn each_seeded_mistake_is_found() {
    for mistake in MISTAKES {
        // It takes a writer that waits, and two sweepers of whom one waits longer still.
        let histories = if mistake == Mistake::PutsPackAgain { 100_000 } else { 3_000 };
        let found = (0..histories).find(|seed| run(*seed, Some(mistake)).is_err());
        assert!(found.is_some(), "{mistake:?} was not found: the model is blind to it");
    }
}

#[test]
fn a_history_can_be_run_again_from_its_seed() {
    let (seed, first) = (0..3_000)
        .find_map(|seed| run(seed, Some(Mistake::IgnoreMarks)).err().map(|first| (seed, first)))
        .expect("the mistake is found");
    assert_eq!(run(seed, Some(Mistake::IgnoreMarks)), Err(first));
}
