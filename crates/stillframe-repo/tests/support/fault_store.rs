//! A store around another one that fails on purpose, and that lets a test act between two requests.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use stillframe_storage::object_store::path::Path;
use stillframe_storage::object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// When a request fails, whether it has had its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    BeforeTheEffect,
    AfterTheEffect,
}

/// Which requests fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Only(u64),
    From(u64),
}

/// Called before each request, with its verb and path.
pub type Hook = Arc<dyn Fn(&'static str, String) -> BoxFuture<'static, ()> + Send + Sync>;

pub struct FaultStore {
    inner: Arc<dyn ObjectStore>,
    requests: AtomicU64,
    fault: Mutex<Option<(Which, Moment)>>,
    io_error: Mutex<Option<std::io::ErrorKind>>,
    hook: Mutex<Option<Hook>>,
}

impl FaultStore {
    pub fn new(inner: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            requests: AtomicU64::new(0),
            fault: Mutex::new(None),
            io_error: Mutex::new(None),
            hook: Mutex::new(None),
        })
    }

    /// Counts from now on, 0 being the next request.
    pub fn fail(&self, which: Which, moment: Moment) {
        self.requests.store(0, Ordering::SeqCst);
        *self.fault.lock().unwrap() = Some((which, moment));
    }

    /// Puts fail like a file system does.
    pub fn fail_puts_with(&self, kind: std::io::ErrorKind) {
        *self.io_error.lock().unwrap() = Some(kind);
    }

    pub fn before_each(&self, hook: Hook) {
        *self.hook.lock().unwrap() = Some(hook);
    }

    pub fn heal(&self) {
        self.requests.store(0, Ordering::SeqCst);
        *self.fault.lock().unwrap() = None;
        *self.io_error.lock().unwrap() = None;
        *self.hook.lock().unwrap() = None;
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    async fn arrive(&self, verb: &'static str, path: &Path) -> Option<Moment> {
        let hook = self.hook.lock().unwrap().clone();
        if let Some(hook) = hook {
            hook(verb, path.to_string()).await;
        }
        self.count()
    }

    fn count(&self) -> Option<Moment> {
        let number = self.requests.fetch_add(1, Ordering::SeqCst);
        let fault = *self.fault.lock().unwrap();
        fault.and_then(|(which, moment)| match which {
            Which::Only(at) => (at == number).then_some(moment),
            Which::From(at) => (number >= at).then_some(moment),
        })
    }
}

fn failure() -> Error {
    Error::Generic { store: "fault", source: "made to fail".into() }
}

/// Runs a request as the fault says.
async fn with_fault<T>(fault: Option<Moment>, request: impl Future<Output = Result<T>>) -> Result<T> {
    match fault {
        Some(Moment::BeforeTheEffect) => Err(failure()),
        Some(Moment::AfterTheEffect) => {
            let _ = request.await;
            Err(failure())
        }
        None => request.await,
    }
}

impl fmt::Debug for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultStore")
    }
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultStore")
    }
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let fault = self.arrive("put", path).await;
        if let Some(kind) = *self.io_error.lock().unwrap() {
            return Err(Error::Generic { store: "fault", source: Box::new(std::io::Error::from(kind)) });
        }
        with_fault(fault, self.inner.put_opts(path, payload, options)).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let fault = self.arrive("put", path).await;
        with_fault(fault, self.inner.put_multipart_opts(path, options)).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let fault = self.arrive("get", path).await;
        with_fault(fault, self.inner.get_opts(path, options)).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let fault = self.count();
        let hook = self.hook.lock().unwrap().clone();
        let paths = match hook {
            None => paths,
            Some(hook) => {
                let heard = move |path: Path| {
                    let hook = Arc::clone(&hook);
                    async move {
                        hook("delete", path.to_string()).await;
                        Ok(path)
                    }
                };
                paths.and_then(heard).boxed()
            }
        };
        match fault {
            Some(Moment::BeforeTheEffect) => futures::stream::iter([Err(failure())]).boxed(),
            Some(Moment::AfterTheEffect) => {
                let deleted = self.inner.delete_stream(paths);
                futures::stream::once(async move {
                    let _: Vec<_> = deleted.collect().await;
                    Err(failure())
                })
                .boxed()
            }
            None => self.inner.delete_stream(paths),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        // The list is taken when it is first asked for, after the hook.
        let hook = self.hook.lock().unwrap().clone();
        let path = prefix.map(ToString::to_string).unwrap_or_default();
        let (inner, prefix) = (Arc::clone(&self.inner), prefix.cloned());
        let fault = self.count();
        futures::stream::once(async move {
            if let Some(hook) = hook {
                hook("list", path).await;
            }
            match fault {
                Some(_) => Err(failure()),
                None => Ok(inner.list(prefix.as_ref())),
            }
        })
        .try_flatten()
        .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let fault = self.count();
        with_fault(fault, self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let fault = self.count();
        with_fault(fault, self.inner.copy_opts(from, to, options)).await
    }
}
