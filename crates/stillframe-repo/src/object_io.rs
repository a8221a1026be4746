//! Objects of the repository in the store, with errors that name them.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use stillframe_storage::object_store::path::Path;
use stillframe_storage::object_store::{
    Error as StoreError, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};

use crate::ObjectId;
use crate::error::{Error, Result};
use crate::layout::{CONFIG_OBJECT, Kind, ObjectName};

/// An object that a list showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Listed {
    pub(crate) id: ObjectId,
    pub(crate) size: u64,
}

/// The store, spoken to in objects of ours.
#[derive(Debug, Clone)]
pub(crate) struct ObjectIo {
    store: Arc<dyn ObjectStore>,
}

impl ObjectIo {
    pub(crate) fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store }
    }

    /// Once. Who gets an error does not know whether it arrived. To put it again is harmless, but for a pack: that may have been condemned meanwhile,
    /// and would be deleted by a sweeper that wakes up late.
    pub(crate) async fn put(&self, name: ObjectName, payload: PutPayload) -> Result<()> {
        tracing::trace!(object = %name, bytes = payload.content_length(), "put");
        let result = self.store.put(&name.path(), payload).await;
        result.map(|_| ()).map_err(|error| Error::store("write it", &name, error))
    }

    /// All bytes of an object that is not larger than its kind may be.
    pub(crate) async fn get(&self, name: ObjectName) -> Result<Bytes> {
        self.get_bounded(&name.path(), &name.to_string(), name.kind.max_len()).await
    }

    pub(crate) async fn get_config(&self) -> Result<Bytes> {
        self.get_bounded(&Path::from(CONFIG_OBJECT), CONFIG_OBJECT, 64 << 10).await
    }

    async fn get_bounded(&self, path: &Path, name: &str, max_len: u64) -> Result<Bytes> {
        tracing::trace!(object = name, "get");
        let failed = |error| Error::store("read it", &name, error);
        let result = self.store.get(path).await.map_err(failed)?;
        let len = result.meta.size;
        if len > max_len {
            return Err(Error::damaged(&name, format!("it is too large: {len} bytes")));
        }
        let bytes = result.bytes().await.map_err(failed)?;
        if bytes.len() as u64 == len {
            Ok(bytes)
        } else {
            Err(Error::damaged(&name, "the store gave fewer or more bytes than it announced"))
        }
    }

    /// A part of an object. One that is shorter than that is damaged.
    pub(crate) async fn get_range(&self, name: ObjectName, range: Range<u64>) -> Result<Bytes> {
        tracing::trace!(object = %name, from = range.start, to = range.end, "get a part");
        let len = range.end.saturating_sub(range.start);
        let too_short = || Error::damaged(&name, "it is shorter than it should be");
        let bytes = match self.store.get_range(&name.path(), range.clone()).await {
            Ok(bytes) => bytes,
            // Stores say in different ways that a range begins behind the end; the length says it in one.
            Err(error) => match self.size(name).await {
                Ok(Some(size)) if size < range.end => return Err(too_short()),
                _ => return Err(Error::store("read it", &name, error)),
            },
        };
        if bytes.len() as u64 == len { Ok(bytes) } else { Err(too_short()) }
    }

    /// `None`: not there.
    pub(crate) async fn size(&self, name: ObjectName) -> Result<Option<u64>> {
        match self.store.head(&name.path()).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(Error::store("look at it", &name, error)),
        }
    }

    /// Gone already is as good.
    pub(crate) async fn delete(&self, name: ObjectName) -> Result<()> {
        tracing::trace!(object = %name, "delete");
        match self.store.delete(&name.path()).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(Error::store("delete it", &name, error)),
        }
    }

    /// All objects of a kind, sorted by id. Names that are not ours are passed over.
    pub(crate) async fn list(&self, kind: Kind) -> Result<Vec<Listed>> {
        tracing::trace!(objects = kind.directory(), "list");
        let prefix = Path::from(kind.directory());
        let listed = self.store.list(Some(&prefix)).try_filter_map(|meta| async move {
            let name = ObjectName::from_path(kind, &meta.location);
            Ok(name.map(|name| Listed { id: name.id, size: meta.size }))
        });
        let mut listed: Vec<_> =
            listed.try_collect().await.map_err(|error| Error::store("list it", &kind.directory(), error))?;
        listed.sort_unstable();
        listed.dedup_by_key(|listed| listed.id);
        Ok(listed)
    }

    /// Any one object of a kind.
    pub(crate) async fn any(&self, kind: Kind) -> Result<Option<String>> {
        let prefix = Path::from(kind.directory());
        let first: Option<ObjectMeta> = self
            .store
            .list(Some(&prefix))
            .try_next()
            .await
            .map_err(|error| Error::store("list it", &kind.directory(), error))?;
        Ok(first.map(|meta| meta.location.to_string()))
    }

    /// Puts `stillframe.json`, which must not replace another one. `false`: there is another one.
    pub(crate) async fn create_config(&self, bytes: &Bytes) -> Result<bool> {
        let path = Path::from(CONFIG_OBJECT);
        let payload = || PutPayload::from_bytes(bytes.clone());
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.store.put_opts(&path, payload(), options).await {
            // An acknowledgement may have been lost and the put repeated below us: what counts is whose bytes are there.
            Ok(_) | Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {}
            Err(StoreError::NotImplemented { .. } | StoreError::NotSupported { .. }) => {
                let result = self.store.put(&path, payload()).await;
                result.map_err(|error| Error::store("write it", &CONFIG_OBJECT, error))?;
            }
            Err(error) => return Err(Error::store("write it", &CONFIG_OBJECT, error)),
        }
        Ok(self.get_config().await? == *bytes)
    }
}
