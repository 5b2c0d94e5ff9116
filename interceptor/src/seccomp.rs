//! Filters of system calls, put together and set.

use std::{collections::BTreeMap, io};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule,
};

/// System calls by number, each with the conditions of which one has to hold; none means always.
pub(crate) type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Has what matches `rules` fail with `errno` from now on, and everything that comes of this process.
///
/// # Errors
/// Where the kernel doesn't take it.
pub(crate) fn refuse(rules: Rules, errno: i32) -> io::Result<()> {
    let refused = SeccompAction::Errno(errno.cast_unsigned());
    install(&compile(rules, SeccompAction::Allow, refused)?)
}

/// Has everything fail with EPERM from now on that doesn't match `rules`.
///
/// # Errors
/// Where the kernel doesn't take it.
pub(crate) fn allow_only(rules: Rules) -> io::Result<()> {
    let refused = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    install(&compile(rules, refused, SeccompAction::Allow)?)
}

fn compile(rules: Rules, others: SeccompAction, these: SeccompAction) -> io::Result<BpfProgram> {
    let architecture = std::env::consts::ARCH
        .try_into()
        .map_err(io::Error::other)?;
    SeccompFilter::new(rules, others, these, architecture)
        .and_then(BpfProgram::try_from)
        .map_err(io::Error::other)
}

/// As the crate's own function does, which gives up new privileges as well: that is a matter of its own here.
pub(crate) fn install(program: &BpfProgram) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog {
        len: length,
        // The kernel reads only; its structure doesn't say so.
        filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: the program outlives the call, has the length that is said, and its instructions are laid out
    // as the kernel's (both are `repr(C)` of the same four fields); the kernel copies it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        let error = io::Error::last_os_error();
        let what = format!("system calls can't be filtered: {error}");
        Err(io::Error::new(error.kind(), what))
    }
}

/// All of `conditions` have to hold.
pub(crate) fn rule(conditions: impl Into<Vec<SeccompCondition>>) -> io::Result<SeccompRule> {
    SeccompRule::new(conditions.into()).map_err(io::Error::other)
}

/// The argument is `value`.
pub(crate) fn is(argument: u8, value: impl TryInto<u64>) -> io::Result<SeccompCondition> {
    let value = value
        .try_into()
        .map_err(|_| io::Error::other("a negative argument"))?;
    condition(argument, SeccompCmpOp::Eq, value)
}

/// The argument has `flag`.
pub(crate) fn has(argument: u8, flag: i32) -> io::Result<SeccompCondition> {
    let flag = u64::from(flag.cast_unsigned());
    condition(argument, SeccompCmpOp::MaskedEq(flag), flag)
}

/// Of the argument's bits in `mask` exactly those of `value` are set.
pub(crate) fn masked(argument: u8, mask: u64, value: u64) -> io::Result<SeccompCondition> {
    condition(argument, SeccompCmpOp::MaskedEq(mask), value)
}

/// A condition on an argument. The kernel takes all that are looked at as 32 bits.
pub(crate) fn condition(
    argument: u8,
    operation: SeccompCmpOp,
    value: u64,
) -> io::Result<SeccompCondition> {
    SeccompCondition::new(argument, Dword, operation, value).map_err(io::Error::other)
}
