//! The network between headquarters and its machines, which can go away: a way for each machine, that is cut in the middle
//! of something, is closed for a while, or swallows all that is sent and says nothing.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{sleep, spawn},
    time::Duration,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    There,
    Home,
}

/// Once so many bytes went there or home it is cut, and the next connections are turned away.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    pub direction: Direction,
    pub after: u64,
    pub turned_away: u32,
}

#[derive(Default)]
pub struct Network {
    plans: Mutex<BTreeMap<String, Cut>>,
    ways: Mutex<Vec<(String, Arc<Way>)>>,
}

impl Network {
    /// For the machine of this run, whenever it comes.
    pub fn plan(&self, run: &str, cut: Cut) {
        self.plans.lock().unwrap().insert(run.into(), cut);
    }

    /// To a machine that has just come, by its id, which ends in its run's name. Where headquarters finds it.
    pub fn lay(&self, id: &str, to: SocketAddrV4) -> Ipv4Addr {
        let mut ways = self.ways.lock().unwrap();
        let at = Ipv4Addr::new(127, 0, 2, u8::try_from(ways.len() + 1).unwrap());
        let cut = self.plans.lock().unwrap().iter().find_map(|(run, cut)| is_of(id, run).then_some(*cut));
        let way = Arc::new(Way { cut: Mutex::new(cut), ..Way::default() });
        ways.push((id.into(), Arc::clone(&way)));
        let port = to.port();
        spawn(move || way.serve(SocketAddrV4::new(at, port), to));
        at
    }

    pub fn to(&self, run: &str) -> Arc<Way> {
        let ways = self.ways.lock().unwrap();
        Arc::clone(&ways.iter().find(|(id, _)| is_of(id, run)).expect("a machine of that run").1)
    }
}

fn is_of(id: &str, run: &str) -> bool {
    id.ends_with(&format!("-{run}"))
}

#[derive(Default)]
pub struct Way {
    closed: AtomicBool,
    turned_away: Mutex<u32>,
    cut: Mutex<Option<Cut>>,
    carried: Mutex<[u64; 2]>,
    open: Mutex<Vec<Arc<Connection>>>,
    /// How often something was broken.
    breaks: Mutex<u32>,
}

struct Connection {
    ends: [TcpStream; 2],
    swallowed: AtomicBool,
}

impl Way {
    /// Whoever is connected is so no more.
    pub fn cut(&self) {
        let open = std::mem::take(&mut *lock(&self.open));
        *lock(&self.breaks) += u32::from(!open.is_empty());
        for end in open.iter().flat_map(|connection| &connection.ends) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// The same, and nobody gets through.
    pub fn close(&self) {
        self.closed.store(true, SeqCst);
        self.cut();
    }

    pub fn open(&self) {
        self.closed.store(false, SeqCst);
    }

    /// Whoever is connected stays so, and hears nothing more. Who connects anew is not concerned.
    pub fn swallow(&self) {
        let open = std::mem::take(&mut *lock(&self.open));
        *lock(&self.breaks) += u32::from(!open.is_empty());
        open.iter().for_each(|connection| connection.swallowed.store(true, SeqCst));
    }

    pub fn breaks(&self) -> u32 {
        *lock(&self.breaks)
    }

    fn serve(self: Arc<Self>, at: SocketAddrV4, to: SocketAddrV4) {
        let mut door = None;
        loop {
            if self.closed.load(SeqCst) {
                // Without anybody there, who connects is refused.
                door = None;
            } else if door.is_none() {
                let listener = TcpListener::bind(at).unwrap();
                listener.set_nonblocking(true).unwrap();
                door = Some(listener);
            }
            match door.as_ref().and_then(|door| door.accept().ok()) {
                Some((near, _)) => self.connect(near, to),
                None => sleep(Duration::from_millis(5)),
            }
        }
    }

    fn connect(self: &Arc<Self>, near: TcpStream, to: SocketAddrV4) {
        let mut away = lock(&self.turned_away);
        if *away > 0 {
            *away -= 1;
            return;
        }
        drop(away);
        near.set_nonblocking(false).unwrap();
        // A machine that is gone answers nobody.
        let Ok(far) = TcpStream::connect(to) else { return };
        let connection = Arc::new(Connection { ends: [near, far], swallowed: AtomicBool::new(false) });
        lock(&self.open).push(Arc::clone(&connection));
        for direction in [Direction::There, Direction::Home] {
            let (way, connection) = (Arc::clone(self), Arc::clone(&connection));
            spawn(move || way.carry(&connection, direction));
        }
    }

    fn carry(&self, connection: &Connection, direction: Direction) {
        let [near, far] = &connection.ends;
        let (mut from, mut to) = if direction == Direction::There { (near, far) } else { (far, near) };
        let mut bytes = vec![0; 64 << 10];
        while let Ok(n @ 1..) = from.read(&mut bytes) {
            while connection.swallowed.load(SeqCst) {
                sleep(Duration::from_secs(1));
            }
            if self.is_due(direction, n as u64) || to.write_all(&bytes[..n]).is_err() {
                break;
            }
        }
        for end in &connection.ends {
            let _ = end.shutdown(Shutdown::Both);
        }
        lock(&self.open).retain(|one| !std::ptr::eq(&**one, connection));
    }

    /// Whether it is cut at these bytes. It was, then.
    fn is_due(&self, direction: Direction, n: u64) -> bool {
        let mut carried = lock(&self.carried);
        let so_far = &mut carried[direction as usize];
        *so_far += n;
        let mut plan = lock(&self.cut);
        let Some(cut) = plan.filter(|cut| cut.direction == direction && *so_far > cut.after) else {
            return false;
        };
        *plan = None;
        *lock(&self.turned_away) = cut.turned_away;
        drop(plan);
        self.cut();
        true
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}
