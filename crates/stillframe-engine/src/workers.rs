//! Threads for work that keeps a processor busy, within the share that a job may take.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use stillframe_jobs::{CpuShare, ThreadTime};
use stillframe_storage::Clock;
use tokio::sync::oneshot;

type Task = Box<dyn FnOnce() + Send>;

/// A fixed number of threads at one priority. Dropping it waits for what runs.
pub(crate) struct Workers {
    queue: Option<SyncSender<Task>>,
    threads: Vec<JoinHandle<()>>,
    count: usize,
}

impl Workers {
    pub(crate) fn start(share: CpuShare, clock: &Arc<dyn Clock>) -> Self {
        let count = share.workers().get();
        // As deep as callers keep tasks in flight, so that handing one over never blocks the runtime for long.
        let (queue, tasks) = sync_channel::<Task>(4 * count);
        let tasks = Arc::new(Mutex::new(tasks));
        let threads = (0..count)
            .map(|_| {
                let (tasks, clock) = (Arc::clone(&tasks), Arc::clone(clock));
                std::thread::spawn(move || work(share, &tasks, clock.as_ref()))
            })
            .collect();
        Self { queue: Some(queue), threads, count }
    }

    /// How many tasks to keep in flight: one for each thread and one waiting.
    pub(crate) fn in_flight(&self) -> usize {
        self.count + 1
    }

    /// Runs `task` on one of the threads. `None` if it panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        task: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (reply, result) = oneshot::channel();
        let task: Task = Box::new(move || {
            // Nobody waits any more when the job was cancelled: then the result is of no use.
            let _ = reply.send(task());
        });
        self.queue.as_ref()?.send(task).ok()?;
        result.await.ok()
    }
}

fn work(share: CpuShare, tasks: &Mutex<Receiver<Task>>, clock: &dyn Clock) {
    share.pace().apply_to_this_thread();
    let (mut rested, mut spent) = (clock.monotonic(), ThreadTime::now());
    loop {
        let task = match tasks.lock() {
            Ok(tasks) => tasks.recv(),
            Err(_) => return,
        };
        let Ok(task) = task else { return };
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(task)).is_err() {
            tracing::error!("a task ended in a panic; the job that waits for it fails");
        }
        let elapsed = clock.monotonic().saturating_sub(rested);
        let rest = share.rest_after(ThreadTime::now().since(spent), elapsed);
        if rest > Duration::from_micros(50) {
            std::thread::sleep(rest);
        }
        // Time that was not used is not saved up beyond a task.
        (rested, spent) = (clock.monotonic(), ThreadTime::now());
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            // A panicking task was caught inside; the thread itself has none.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use stillframe_jobs::{CpuPercent, Pace};
    use stillframe_storage::SystemClock;

    use super::*;

    /// How long five tasks take a worker that may have a tenth of a processor.
    async fn five(task: impl Fn() + Clone + Send + 'static) -> Duration {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let tenth = CpuPercent::try_from(10).unwrap();
        let workers = Workers::start(CpuShare::new(Pace::Fast, Some(tenth), NonZeroUsize::MIN), &clock);
        let began = clock.monotonic();
        for _ in 0..5 {
            workers.run(task.clone()).await.unwrap();
        }
        clock.monotonic().saturating_sub(began)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_works_rests_nine_times_as_long_and_who_waits_has_rested() {
        let work = || {
            let began = ThreadTime::now();
            while ThreadTime::now().since(began).used < Duration::from_millis(20) {
                std::hint::spin_loop();
            }
        };
        // After each but the last.
        let worked = five(work).await;
        assert!(worked >= Duration::from_millis(4 * 180), "{worked:?}");
        let waited = five(|| std::thread::sleep(Duration::from_millis(50))).await;
        assert!(waited < Duration::from_millis(4 * 450), "{waited:?}");
    }
}
