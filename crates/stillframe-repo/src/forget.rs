//! Forgetting a backup: what it needed is garbage from then on, unless another backup needs it too.

use stillframe_storage::failpoint;

use crate::error::Result;
use crate::layout::{Kind, ObjectName};
use crate::{BackupId, Repository};

impl Repository {
    /// Takes away the seal and then the manifest, so that no sealed backup is ever without its manifest. Also what is not sealed. One that is gone already
    /// is as good as forgotten. No room comes back before [`Self::prune`].
    pub async fn forget(&self, id: BackupId) -> Result<()> {
        self.io().delete(ObjectName::new(Kind::Sealed, id)).await?;
        failpoint("forget::unsealed");
        self.io().delete(ObjectName::new(Kind::Manifest, id)).await
    }
}
