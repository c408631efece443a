//! A bound socket, TCP or unix.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
    },
    path::{Path, PathBuf},
};

use tokio::net::{TcpListener, UnixListener};

use super::{Bound, Listen, Stream};

/// Connections that the kernel holds until they are accepted; it takes `net.core.somaxconn` where that is less. Beyond it,
/// a client tries again after 1 s, then 2, then 4. The standard library asks for 128, which many clients that begin at
/// once exceed.
const BACKLOG: i32 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen on {address}")]
    Tcp { address: SocketAddr, source: io::Error },
    #[error("cannot listen on unix:{}", path.display())]
    Unix { path: PathBuf, source: io::Error },
    #[error("somebody listens on unix:{} already", path.display())]
    InUse { path: PathBuf },
    #[error("unix:{} is there and is no socket", path.display())]
    NoSocket { path: PathBuf },
}

pub(super) enum Listener {
    Tcp { listener: TcpListener, address: SocketAddr },
    Unix { listener: UnixListener, file: SocketFile },
}

impl Listener {
    pub fn bind(listen: &Listen) -> Result<Self, BindError> {
        match listen {
            Listen::Tcp(address) => {
                Self::bind_tcp(*address).map_err(|source| BindError::Tcp { address: *address, source })
            }
            Listen::Unix(path) => Self::bind_unix(path),
        }
    }

    fn bind_tcp(address: SocketAddr) -> io::Result<Self> {
        // The standard library's listener lets an address be taken again right after its process ended.
        let listener = std::net::TcpListener::bind(address)?;
        rustix::net::listen(&listener, BACKLOG)?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        Ok(Self::Tcp { listener, address })
    }

    fn bind_unix(path: &Path) -> Result<Self, BindError> {
        make_room(path)?;
        let bind = || {
            // Bound under another name and moved when only this user may open it: there is no moment in between.
            let hidden = path.with_file_name(format!(".{}.sock", std::process::id()));
            let _ = fs::remove_file(&hidden);
            let listener = StdUnixListener::bind(&hidden)?;
            rustix::net::listen(&listener, BACKLOG)?;
            fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600))?;
            fs::rename(&hidden, path)?;
            listener.set_nonblocking(true)?;
            let file = SocketFile { path: path.to_owned(), inode: fs::symlink_metadata(path)?.ino() };
            Ok(Self::Unix { listener: UnixListener::from_std(listener)?, file })
        };
        bind().map_err(|source| BindError::Unix { path: path.to_owned(), source })
    }

    pub fn bound(&self) -> Bound {
        match self {
            Self::Tcp { address, .. } => Bound::Tcp(*address),
            Self::Unix { file, .. } => Bound::Unix(file.path.clone()),
        }
    }

    /// # Cancellation
    ///
    /// Dropping the future loses no connection.
    pub async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Tcp { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                // A connection that is gone already fails here; serving it notices.
                let _ = stream.set_nodelay(true);
                Ok(Box::new(stream))
            }
            Self::Unix { listener, .. } => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

/// Removes what an earlier process left behind, and nothing else.
fn make_room(path: &Path) -> Result<(), BindError> {
    let failed = |source| BindError::Unix { path: path.to_owned(), source };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(BindError::NoSocket { path: path.to_owned() });
    }
    match StdUnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(failed(error)),
        // A full backlog is a listener too.
        _ => Err(BindError::InUse { path: path.to_owned() }),
    }
}

/// The file of a unix socket, removed at the end unless somebody has put another in its place.
pub(super) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
