import Glibc

/// How an encrypted connection is made, and whom it trusts.
package struct TLSOptions: Equatable, Sendable {
    /// The name or address that the server's certificate must be for.
    package var host: String
    /// A directory with ca-cert.pem, and client-cert.pem and client-key.pem where the server wants to know its clients; nil: the
    /// system's certificate authorities are trusted.
    package var certificates: String?
    /// False: any server will do, and anybody in between.
    package var verifiesPeer: Bool
    package init(host: String, certificates: String? = nil, verifiesPeer: Bool = true) {
        self.host = host
        self.certificates = certificates
        self.verifiesPeer = verifiesPeer
    }
}

/// The client's side of a TLS connection over a socket that does not block. Belongs to one thread.
struct TLSSession: ~Copyable {
    enum Step: Equatable { case moved(Int), needsInput, needsOutput, ended, failed(String) }
    private let library: OpenSSL
    private let context: OpenSSL.Pointer
    private let session: OpenSSL.Pointer

    init(_ options: TLSOptions, descriptor: Int32) throws(NBDError) {
        guard let library = OpenSSL.shared else { throw NBDError("encrypted connections need OpenSSL 3 (libssl.so.3; Debian's package libssl3)") }
        guard let context = library.newContext(library.clientMethod()) else { throw NBDError("OpenSSL does not work: \(Self.reason(library))") }
        var session: OpenSSL.Pointer?
        do throws(NBDError) {
            try Self.prepare(context, options, library)
            session = library.new(context)
            guard let session, library.setDescriptor(session, descriptor) == 1 else { throw NBDError("OpenSSL does not work: \(Self.reason(library))") }
            try Self.name(session, options, library)
        } catch {
            library.free(session)
            library.freeContext(context)
            throw error
        }
        guard let session else { throw NBDError("OpenSSL does not work") }
        (self.library, self.context, self.session) = (library, context, session)
    }
    deinit {
        library.free(session)
        library.freeContext(context)
    }

    private static func prepare(_ context: OpenSSL.Pointer, _ options: TLSOptions, _ library: OpenSSL) throws(NBDError) {
        _ = library.controlContext(context, OpenSSL.minimumVersion, OpenSSL.version1_2, nil)
        _ = library.controlContext(context, OpenSSL.mode, OpenSSL.partialWrites, nil)
        if options.verifiesPeer {
            library.setVerify(context, OpenSSL.verifyPeer, nil)
            if let directory = options.certificates {
                guard library.loadVerifyLocations(context, directory + "/ca-cert.pem", nil) == 1 else {
                    throw NBDError("cannot use the certificate authority \(directory)/ca-cert.pem: \(reason(library))")
                }
            } else if library.setDefaultVerifyPaths(context) != 1 {
                throw NBDError("cannot read the system's certificate authorities: \(reason(library))")
            }
        }
        guard let directory = options.certificates, access(directory + "/client-cert.pem", F_OK) == 0 else { return }
        guard library.useCertificateChain(context, directory + "/client-cert.pem") == 1,
            library.usePrivateKey(context, directory + "/client-key.pem", OpenSSL.pemFile) == 1
        else { throw NBDError("cannot use the client certificate in \(directory): \(reason(library))") }
    }
    private static func name(_ session: OpenSSL.Pointer, _ options: TLSOptions, _ library: OpenSSL) throws(NBDError) {
        if library.setAddress(library.parameters(session), options.host) == 1 { return }
        library.clearErrors()
        var name = Array(options.host.utf8CString)
        let isNamed = name.withUnsafeMutableBytes { library.control(session, OpenSSL.serverName, 0, $0.baseAddress) } == 1
        guard isNamed, library.setHost(session, options.host) == 1 else { throw NBDError("\(options.host) is no name for a server") }
    }
    /// The first of OpenSSL's reasons, which is what went wrong.
    private static func reason(_ library: OpenSSL) -> String {
        let code = library.nextError()
        library.clearErrors()
        return library.errorText(code).map { String(cString: $0) } ?? "no reason is given"
    }

    /// The handshake; `moved(0)` when it is done.
    borrowing func connect() -> Step {
        library.clearErrors()
        let result = library.connect(session)
        if result == 1 { return .moved(0) }
        let step = outcome(result)
        guard case .failed(let reason) = step else { return step == .ended ? .failed("the server closed the connection") : step }
        let verified = library.verifyResult(session)
        guard verified != 0, let text = library.verifyText(verified) else { return .failed(reason) }
        return .failed("the server's certificate is not good: \(String(cString: text))")
    }
    borrowing func read(_ buffer: UnsafeMutableRawBufferPointer) -> Step {
        guard let base = buffer.baseAddress else { return .needsInput }
        library.clearErrors()
        let result = library.read(session, base, Int32(buffer.count))
        return result > 0 ? .moved(Int(result)) : outcome(result)
    }
    borrowing func write(_ buffer: UnsafeRawBufferPointer) -> Step {
        guard let base = buffer.baseAddress else { return .moved(0) }
        library.clearErrors()
        let result = library.write(session, base, Int32(buffer.count))
        return result > 0 ? .moved(Int(result)) : outcome(result)
    }
    borrowing func shutdown() {
        library.clearErrors()
        _ = library.shutdown(session)
    }
    private borrowing func outcome(_ result: Int32) -> Step {
        let code = errno
        switch library.errorKind(session, result) {
        case OpenSSL.wantsRead: return .needsInput
        case OpenSSL.wantsWrite: return .needsOutput
        case OpenSSL.closed: return .ended
        case 5 where code == 0: return .ended  // SSL_ERROR_SYSCALL: the end, without a word
        case 5: return .failed(String(cString: strerror(code)).lowercased())
        default: return .failed(Self.reason(library))
        }
    }
}
