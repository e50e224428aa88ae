/// The FUSE protocol as a Linux guest speaks it, version 7: numbers and sizes.
enum Fuse {
    static let major: UInt32 = 7
    static let minor: UInt32 = 38
    /// fuse_in_header and fuse_out_header.
    static let requestHeader = 40
    static let replyHeader = 16
    static let entrySize = 128
    static let rootNode: UInt64 = 1
    static let largestWrite = 1 << 20

    enum Operation {
        static let lookup: UInt32 = 1
        static let forget: UInt32 = 2
        static let getAttributes: UInt32 = 3
        static let setAttributes: UInt32 = 4
        static let readLink: UInt32 = 5
        static let symbolicLink: UInt32 = 6
        static let makeNode: UInt32 = 8
        static let makeDirectory: UInt32 = 9
        static let unlink: UInt32 = 10
        static let removeDirectory: UInt32 = 11
        static let rename: UInt32 = 12
        static let link: UInt32 = 13
        static let open: UInt32 = 14
        static let read: UInt32 = 15
        static let write: UInt32 = 16
        static let fileSystemStatus: UInt32 = 17
        static let release: UInt32 = 18
        static let synchronize: UInt32 = 20
        static let setExtended: UInt32 = 21
        static let getExtended: UInt32 = 22
        static let listExtended: UInt32 = 23
        static let removeExtended: UInt32 = 24
        static let flush: UInt32 = 25
        static let initialize: UInt32 = 26
        static let openDirectory: UInt32 = 27
        static let readDirectory: UInt32 = 28
        static let releaseDirectory: UInt32 = 29
        static let synchronizeDirectory: UInt32 = 30
        static let create: UInt32 = 35
        static let interrupt: UInt32 = 36
        static let destroy: UInt32 = 38
        static let batchForget: UInt32 = 42
        static let allocate: UInt32 = 43
        static let readDirectoryPlus: UInt32 = 44
        static let rename2: UInt32 = 45
        static let seek: UInt32 = 46
        static let copyRange: UInt32 = 47
        static let setUpMapping: UInt32 = 48
        static let removeMapping: UInt32 = 49
        static let synchronizeFileSystem: UInt32 = 50
        static let temporaryFile: UInt32 = 51
    }
    /// What both sides may offer in the first request.
    enum Flag {
        static let asynchronousRead: UInt32 = 1 << 0
        static let atomicTruncate: UInt32 = 1 << 3
        static let bigWrites: UInt32 = 1 << 5
        static let invalidateData: UInt32 = 1 << 12
        static let readDirectoryPlus: UInt32 = 1 << 13
        static let readDirectoryPlusAutomatic: UInt32 = 1 << 14
        static let asynchronousDirect: UInt32 = 1 << 15
        static let parallelDirectories: UInt32 = 1 << 18
        static let maximumPages: UInt32 = 1 << 22
        static let cacheSymbolicLinks: UInt32 = 1 << 23
        static let mapAlignment: UInt32 = 1 << 26
        /// Who changes a file takes its set-user-ID and set-group-ID bits, here and not by a request more (FUSE_HANDLE_KILLPRIV_V2).
        static let takesPrivileges: UInt32 = 1 << 28
        static let moreFlags: UInt32 = 1 << 30
        /// Among the second 32: the attributes of a file say whether it is to be mapped.
        static let directByFile: UInt32 = 1 << 1
        static let wanted =
            asynchronousRead | atomicTruncate | bigWrites | invalidateData | readDirectoryPlus | readDirectoryPlusAutomatic | asynchronousDirect
            | parallelDirectories | maximumPages | cacheSymbolicLinks | takesPrivileges
    }
    enum Valid {
        static let mode: UInt32 = 1 << 0
        static let user: UInt32 = 1 << 1
        static let group: UInt32 = 1 << 2
        static let size: UInt32 = 1 << 3
        static let accessTime: UInt32 = 1 << 4
        static let modificationTime: UInt32 = 1 << 5
        static let handle: UInt32 = 1 << 6
        static let accessNow: UInt32 = 1 << 7
        static let modificationNow: UInt32 = 1 << 8
        /// Whoever asks may not keep the set-user-ID and set-group-ID bits.
        static let takePrivileges: UInt32 = 1 << 11
    }
    /// The same in a write's flags, and in those of an open that truncates.
    static let writeTakesPrivileges: UInt32 = 1 << 2
    /// In a write's flags: pages that a program has mapped and changed, some time before.
    static let writeOfCachedPages: UInt32 = 1 << 0
    static let openTakesPrivileges: UInt32 = 1 << 0
    /// In fuse_attr.flags: this file is to be mapped.
    static let directAttribute: UInt32 = 1 << 1
    /// What is read and written by this handle goes past the guest's page cache.
    static let directAccess: UInt32 = 1 << 0
    /// The guest may keep pages over an open; it drops them when size or time of the file have changed.
    static let keepCache: UInt32 = 1 << 1
}

/// An error number for the guest.
struct FuseError: Error {
    let code: Int32
    init(_ code: Int32) { self.code = code }
}
