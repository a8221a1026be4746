//! Work of the repository that tells how far it is, beside somebody who listens.

use std::sync::Arc;

use tokio::sync::mpsc::unbounded_channel;

/// Does `work` with something to tell events to; each goes to `heard`, in order, while the work goes on. All are heard by the time this
/// returns, provided that the work drops what it was given.
pub(crate) async fn while_listening<E: Send + 'static, T>(
    work: impl AsyncFnOnce(Arc<dyn Fn(E) + Send + Sync>) -> T,
    mut heard: impl FnMut(E),
) -> T {
    let (sender, mut events) = unbounded_channel();
    // Nobody listens any more when the job is over.
    let tell = Arc::new(move |event| sender.send(event).unwrap_or(()));
    let listen = async {
        while let Some(event) = events.recv().await {
            heard(event);
        }
    };
    tokio::join!(work(tell), listen).0
}
