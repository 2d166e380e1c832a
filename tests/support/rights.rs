//! Files that may be read and not written, for whoever runs the tests.

/// Takes the right to write from this thread alone, root's included, and gives its result.
pub fn without_rights<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let as_nobody = || {
            // SAFETY: a plain system call, which on Linux concerns the calling thread alone. Who is not root stays who they are.
            unsafe { libc::setfsuid(65534) };
            act()
        };
        scope.spawn(as_nobody).join().unwrap()
    })
}
