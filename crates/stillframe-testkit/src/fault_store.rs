//! An object store that fails on demand.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

/// The operations that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// An object is written; also each part of an upload in parts, and its completion.
    Put,
    /// An object, a range of one, or its size is read.
    Get,
    /// Names are listed.
    List,
    /// An object is removed.
    Delete,
    /// An object is copied or renamed.
    Copy,
}

/// What happens instead of success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It fails and nothing has happened.
    FailBefore,
    /// It happens, and is reported as failed: a lost acknowledgement.
    FailAfter,
    /// It fails for want of space, and nothing has happened.
    NoSpace,
    /// It says that there is no such object.
    NotFound,
    /// It succeeds, later.
    Delay(Duration),
}

/// When something happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Only operations of this kind count; none is any.
    pub operation: Option<Operation>,
    /// Only names that begin with this count; empty is any.
    pub prefix: String,
    /// The first one that is hit, of those that count, from 1.
    pub from: u64,
    /// How many are hit from there on.
    pub times: u64,
    /// What happens to them.
    pub effect: Effect,
}

impl Fault {
    /// The operation `number` (from 1) of any kind, once.
    pub fn nth(number: u64, effect: Effect) -> Self {
        Self { operation: None, prefix: String::new(), from: number, times: 1, effect }
    }

    /// The `number`-th operation of one kind on names that begin with `prefix`, once.
    pub fn nth_of(operation: Operation, prefix: &str, number: u64, effect: Effect) -> Self {
        Self { operation: Some(operation), prefix: prefix.into(), from: number, times: 1, effect }
    }

    /// From there on every time.
    #[must_use]
    pub fn forever(self) -> Self {
        Self { times: u64::MAX, ..self }
    }
}

/// A store around another one, with faults. Every operation is counted and written down, so that a test can run once without
/// faults and then once for each operation.
#[derive(Debug, Clone)]
pub struct FaultStore {
    inner: Arc<dyn ObjectStore>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    faults: Vec<(Fault, u64)>,
    log: Vec<(Operation, String)>,
    /// Bytes that may still be written.
    space: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
#[error("this failure was asked for: operation {number}, {operation:?} {name}")]
struct Injected {
    number: usize,
    operation: Operation,
    name: String,
}

/// What the faults say about one operation.
struct Sentence {
    fail_after: Option<Error>,
    delay: Duration,
}

impl FaultStore {
    /// Without any fault yet.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, state: Arc::default() }
    }

    /// Adds a fault; operations count for it from now on.
    pub fn inject(&self, fault: Fault) {
        self.state().faults.push((fault, 0));
    }

    /// Lets only so many more bytes be written; after that writing fails as on a full disk. None lifts the limit.
    pub fn limit_space(&self, bytes: Option<u64>) {
        self.state().space = bytes;
    }

    /// Takes all faults and limits away.
    pub fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.space = None;
    }

    /// All operations so far with the name that each was about (of a list: its prefix), in the order of their beginning.
    pub fn log(&self) -> Vec<(Operation, String)> {
        self.state().log.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation that writes `bytes` and decides what happens to it.
    fn decide(&self, operation: Operation, name: &str, bytes: u64) -> Result<Sentence> {
        let mut state = self.state();
        state.log.push((operation, name.to_owned()));
        let number = state.log.len();
        let injected = || Injected { number, operation, name: name.to_owned() };
        let mut sentence = Sentence { fail_after: None, delay: Duration::ZERO };
        for (fault, counted) in &mut state.faults {
            let counts =
                fault.operation.is_none_or(|only| only == operation) && name.starts_with(&fault.prefix);
            if !counts {
                continue;
            }
            *counted += 1;
            if *counted < fault.from || *counted - fault.from >= fault.times {
                continue;
            }
            match fault.effect {
                Effect::FailBefore => return Err(generic(injected())),
                Effect::FailAfter => sentence.fail_after = Some(generic(injected())),
                Effect::NoSpace => return Err(no_space()),
                Effect::NotFound => {
                    return Err(Error::NotFound { path: name.to_owned(), source: Box::new(injected()) });
                }
                Effect::Delay(delay) => sentence.delay += delay,
            }
        }
        if let Some(space) = &mut state.space {
            *space = space.checked_sub(bytes).ok_or_else(no_space)?;
        }
        Ok(sentence)
    }

    async fn run<T>(
        &self,
        operation: Operation,
        name: &str,
        bytes: u64,
        work: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let sentence = self.decide(operation, name, bytes)?;
        if !sentence.delay.is_zero() {
            tokio::time::sleep(sentence.delay).await;
        }
        let result = work.await?;
        sentence.fail_after.map_or(Ok(result), Err)
    }
}

fn generic(source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Generic { store: "FaultStore", source: Box::new(source) }
}

fn no_space() -> Error {
    generic(io::Error::from(io::ErrorKind::StorageFull))
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultStore({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let bytes = payload.content_length() as u64;
        let work = self.inner.put_opts(location, payload, options);
        self.run(Operation::Put, location.as_ref(), bytes, work).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let work = self.inner.put_multipart_opts(location, options);
        let upload = self.run(Operation::Put, location.as_ref(), 0, work).await?;
        Ok(Box::new(FaultUpload { store: self.clone(), name: location.to_string(), upload }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.run(Operation::Get, location.as_ref(), 0, self.inner.get_opts(location, options)).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.run(Operation::Get, location.as_ref(), 0, self.inner.get_ranges(location, ranges)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let deletions = locations.then(move |location| {
            let store = store.clone();
            async move {
                let location = location?;
                let one = futures::stream::once(futures::future::ready(Ok(location.clone()))).boxed();
                let mut deletion = store.inner.delete_stream(one);
                let work = async { deletion.next().await.unwrap_or_else(|| Ok(location.clone())) };
                store.run(Operation::Delete, location.as_ref(), 0, work).await
            }
        });
        deletions.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let inner = self.inner.list(prefix);
        self.faulty_list(prefix, inner)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let inner = self.inner.list_with_offset(prefix, offset);
        self.faulty_list(prefix, inner)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let name = prefix.map_or("", |prefix| prefix.as_ref());
        self.run(Operation::List, name, 0, self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.run(Operation::Copy, to.as_ref(), 0, self.inner.copy_opts(from, to, options)).await
    }
}

impl FaultStore {
    /// A list that fails before gives nothing; one that fails after gives everything and then an error.
    fn faulty_list(
        &self,
        prefix: Option<&Path>,
        inner: BoxStream<'static, Result<ObjectMeta>>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let name = prefix.map_or("", |prefix| prefix.as_ref()).to_owned();
        let store = self.clone();
        let begin = async move {
            match store.decide(Operation::List, &name, 0) {
                Err(error) => futures::stream::once(futures::future::ready(Err(error))).boxed(),
                Ok(sentence) => {
                    if !sentence.delay.is_zero() {
                        tokio::time::sleep(sentence.delay).await;
                    }
                    inner.chain(futures::stream::iter(sentence.fail_after.map(Err))).boxed()
                }
            }
        };
        futures::stream::once(begin).flatten().boxed()
    }
}

#[derive(Debug)]
struct FaultUpload {
    store: FaultStore,
    name: String,
    upload: Box<dyn MultipartUpload>,
}

#[async_trait]
impl MultipartUpload for FaultUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let bytes = data.content_length() as u64;
        let part = self.upload.put_part(data);
        let (store, name) = (self.store.clone(), self.name.clone());
        Box::pin(async move { store.run(Operation::Put, &name, bytes, part).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let work = self.upload.complete();
        self.store.run(Operation::Put, &self.name, 0, work).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.upload.abort().await
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    use super::*;

    fn store() -> FaultStore {
        FaultStore::new(Arc::new(InMemory::new()))
    }

    async fn names(store: &FaultStore) -> Result<Vec<String>> {
        let metas: Vec<_> = store.list(None).try_collect().await?;
        Ok(metas.into_iter().map(|meta| meta.location.to_string()).collect())
    }

    fn path(name: &str) -> Path {
        Path::from(name)
    }

    #[tokio::test]
    async fn the_nth_operation_fails_before_or_after_its_effect_and_only_that_one() {
        for (effect, left) in [(Effect::FailBefore, vec!["a", "c"]), (Effect::FailAfter, vec!["a", "b", "c"])]
        {
            let store = store();
            store.inject(Fault::nth(2, effect));
            for (name, succeeds) in [("a", true), ("b", false), ("c", true)] {
                assert_eq!(store.put(&path(name), "x".into()).await.is_ok(), succeeds, "{name}, {effect:?}");
            }
            assert_eq!(names(&store).await.unwrap(), left);
        }
    }

    #[tokio::test]
    async fn faults_of_one_kind_and_prefix_leave_others_alone_and_can_last() {
        let store = store();
        store.inject(Fault::nth_of(Operation::Put, "packs/", 2, Effect::FailBefore).forever());
        assert!(store.put(&path("packs/1"), "x".into()).await.is_ok());
        assert!(store.put(&path("index/1"), "x".into()).await.is_ok());
        assert!(store.put(&path("packs/2"), "x".into()).await.is_err());
        assert!(store.put(&path("packs/3"), "x".into()).await.is_err());
        assert!(store.get(&path("packs/1")).await.is_ok());
        store.heal();
        assert!(store.put(&path("packs/3"), "x".into()).await.is_ok());
        let puts = store.log().iter().filter(|(operation, _)| *operation == Operation::Put).count();
        assert_eq!(puts, 5);
    }

    #[tokio::test]
    async fn a_full_store_says_so_and_keeps_what_it_has() {
        let store = store();
        store.limit_space(Some(5));
        store.put(&path("a"), "1234".into()).await.unwrap();
        let error = store.put(&path("b"), "12".into()).await.unwrap_err();
        let Error::Generic { source, .. } = &error else { panic!("{error}") };
        let kind = source.downcast_ref::<io::Error>().map(io::Error::kind);
        assert_eq!(kind, Some(io::ErrorKind::StorageFull));
        store.put(&path("c"), "1".into()).await.unwrap();
        assert_eq!(names(&store).await.unwrap(), ["a", "c"]);
    }

    #[tokio::test]
    async fn uploads_in_parts_count_each_part() {
        let store = store();
        store.limit_space(Some(10));
        let mut upload = store.put_multipart(&path("big")).await.unwrap();
        upload.put_part("12345678".into()).await.unwrap();
        assert!(upload.put_part("12345678".into()).await.is_err());
        upload.abort().await.unwrap();
        assert_eq!(names(&store).await.unwrap(), [""; 0]);
        store.heal();
        let mut upload = store.put_multipart(&path("big")).await.unwrap();
        upload.put_part("12345678".into()).await.unwrap();
        store.inject(Fault::nth_of(Operation::Put, "big", 1, Effect::FailAfter));
        assert!(upload.complete().await.is_err());
        assert_eq!(names(&store).await.unwrap(), ["big"], "done, though it was said to have failed");
    }

    #[tokio::test]
    async fn deletes_and_lists_fail_on_demand_too() {
        let store = store();
        for name in ["a", "b"] {
            store.put(&path(name), "x".into()).await.unwrap();
        }
        store.inject(Fault::nth_of(Operation::Delete, "a", 1, Effect::FailBefore));
        assert!(store.delete(&path("a")).await.is_err());
        store.delete(&path("b")).await.unwrap();
        store.inject(Fault::nth_of(Operation::List, "", 1, Effect::FailAfter));
        assert!(names(&store).await.is_err());
        assert_eq!(names(&store).await.unwrap(), ["a"]);
        store.inject(Fault::nth_of(Operation::Get, "a", 1, Effect::NotFound));
        assert!(matches!(store.get(&path("a")).await, Err(Error::NotFound { .. })));
    }

    #[tokio::test]
    async fn a_slow_operation_takes_its_time_and_succeeds() {
        let store = store();
        store.inject(Fault::nth(1, Effect::Delay(Duration::from_millis(100))));
        let before = tokio::time::Instant::now();
        store.put(&path("a"), "x".into()).await.unwrap();
        assert!(before.elapsed() >= Duration::from_millis(100));
    }
}
