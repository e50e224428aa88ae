import CLinux
import Glibc
import HostNetwork
import LinuxSystem

/// Everything behind one port: the guest's connections and what waits for it. One thread at a time.
final class Stack {
    typealias Addresses = UserNetwork.Addresses
    let options: UserNetwork.Options
    let guest: IPAddress
    let resolver: Resolver
    var hardware: UInt64 = 0
    /// The guest has sent a frame from its address: it can be reached.
    var isGuestKnown = false

    let epoll: Int32
    private let wake: EventFD
    private let timer: TimerFD
    private var armed: UInt64 = 0
    /// TFD_TIMER_ABSTIME.
    private var isSleeping = false

    private var endpoints: [UInt64: Endpoint] = [:]
    private var nextID: UInt64 = 2  // 0: wake, 1: timer
    private var ready: [Endpoint] = []
    private var readyHead = 0
    private var frames: [[UInt8]] = []
    private var framesHead = 0

    var connections: [TCPKey: TCPConnection] = [:]
    var flows: [SocketAddress: UDPFlow] = [:]
    var echoes: [EchoKey: EchoFlow] = [:]
    /// Endpoints of forwarded ports.
    var listeners: [ForwardListener] = []
    var reassembler = Reassembler()
    /// Bytes that connections hold in their rings.
    var ringBytes = 0
    var accepted: AcceptedOffloads = []
    /// What the frame that is being made needs.
    var offload = FrameOffload()
    var identification: UInt16 = 0
    var nextAlias: UInt16 = 40000

    let headers = UnsafeMutableRawPointer.allocate(byteCount: 14 + ParsedPacket.headerCapacity, alignment: 16)
    let writer: PacketWriter
    let parts = UnsafeMutablePointer<iovec>.allocate(capacity: Stack.partCapacity)
    static let partCapacity = 1024
    /// A datagram on its way to the guest: transport header and payload.
    let datagram = UnsafeMutableRawPointer.allocate(byteCount: 65536 + 64, alignment: 16)

    init(_ options: UserNetwork.Options, guest: IPAddress, wake: EventFD) throws(SystemError) {
        self.options = options
        self.guest = guest
        self.wake = wake
        resolver = Resolver(options.resolverPath)
        timer = try TimerFD()
        epoll = Int32(try SystemError.check("epoll_create1") { Int(epoll_create1(Int32(EPOLL_CLOEXEC))) })
        writer = PacketWriter()
        watch(wake.fileDescriptor, 0)
        watch(timer.fileDescriptor, 1)
    }
    deinit {
        for endpoint in endpoints.values { endpoint.end() }
        close(epoll)
        headers.deallocate()
        parts.deallocate()
        datagram.deallocate()
    }

    // MARK: endpoints

    /// Everything is edge-triggered: an endpoint remembers what it may do.
    private func watch(_ fd: Int32, _ id: UInt64) {
        var event = epoll_event()
        event.events = EPOLLIN.rawValue | EPOLLOUT.rawValue | EPOLLRDHUP.rawValue | EPOLLET.rawValue
        event.data.u64 = id
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)
    }
    func takeID() -> UInt64 {
        nextID += 1
        return nextID
    }
    func insert(_ endpoint: Endpoint) {
        endpoints[endpoint.id] = endpoint
        watch(endpoint.fd, endpoint.id)
    }
    func erase(_ endpoint: Endpoint) {
        guard endpoints.removeValue(forKey: endpoint.id) != nil else { return }
        endpoint.deadline = 0
        endpoint.end()
    }
    func isAlive(_ endpoint: Endpoint) -> Bool { endpoints[endpoint.id] != nil }

    func makeReady(_ endpoint: Endpoint) {
        guard !endpoint.isReady else { return }
        endpoint.isReady = true
        ready.append(endpoint)
    }
    private func nextReady() -> Endpoint? {
        guard readyHead < ready.count else { return nil }
        let endpoint = ready[readyHead]
        readyHead += 1
        if readyHead == ready.count {
            ready.removeAll(keepingCapacity: true)
            readyHead = 0
        } else if readyHead >= 1024 {
            ready.removeFirst(readyHead)
            readyHead = 0
        }
        endpoint.isReady = false
        return endpoint
    }
    /// The guest has gone: so have its connections.
    func forgetGuest() {
        for endpoint in endpoints.values where endpoint.endsWithGuest {
            (endpoint as? TCPConnection)?.isAborted = true
            erase(endpoint)
        }
        connections = [:]
        flows = [:]
        echoes = [:]
        frames = []
        framesHead = 0
        isGuestKnown = false
        ringBytes = 0
    }

    // MARK: time

    func now() -> UInt64 { monotonicNanoseconds() }
    func setDeadline(_ endpoint: Endpoint, _ time: UInt64) {
        endpoint.deadline = time
        if time != 0, armed == 0 || time < armed { arm(time) }
    }
    private func arm(_ time: UInt64) {
        armed = time
        timer.set(time)
    }
    private func timePassed() {
        timer.drain()
        armed = 0
        let time = now()
        let due = endpoints.values.filter { $0.deadline != 0 && $0.deadline <= time }
        for endpoint in due {
            endpoint.deadline = 0
            endpoint.expired(time, self)
        }
        let next = endpoints.values.reduce(UInt64.max) { $1.deadline != 0 ? min($0, $1.deadline) : $0 }
        if next != .max { arm(max(next, time + 1_000_000)) }
    }

    // MARK: to the guest

    /// Queues a finished frame; there is room for some, as on a wire.
    func emit(_ frame: [UInt8]) {
        guard frames.count - framesHead < 1024 else { return }
        frames.append(frame)
    }
    /// Whether the receiving thread sleeps although there is something for it.
    func takeWake() -> Bool {
        guard isSleeping, readyHead < ready.count || framesHead < frames.count else { return false }
        isSleeping = false
        return true
    }
    func output(_ room: MemoryPieces, _ accepted: AcceptedOffloads) -> (FrameResult, FrameOffload) {
        self.accepted = accepted
        isSleeping = false
        while true {
            offload = FrameOffload()
            if framesHead < frames.count {
                let frame = frames[framesHead]
                framesHead += 1
                if framesHead == frames.count {
                    frames.removeAll(keepingCapacity: true)
                    framesHead = 0
                }
                _ = frame.withUnsafeBytes { bytes in bytes.baseAddress.map { room.write($0, bytes.count, at: 0) } }
                return (.done(frame.count), offload)
            }
            while let endpoint = nextReady() {
                guard isAlive(endpoint), let size = endpoint.produce(room, self) else {
                    if framesHead < frames.count { break }
                    continue
                }
                if isAlive(endpoint) { makeReady(endpoint) }
                return (.done(size), offload)
            }
            if framesHead < frames.count { continue }
            guard pollHost() else {
                isSleeping = true
                return (.wouldBlock, offload)
            }
        }
    }
    /// Takes what the host has; false when there is nothing.
    private func pollHost() -> Bool {
        withUnsafeTemporaryAllocation(of: epoll_event.self, capacity: 64) { events in
            let count = Int(epoll_wait(epoll, events.baseAddress, 64, 0))
            guard count > 0 else { return false }
            for event in events[..<count] {
                switch event.data.u64 {
                case 0: break
                case 1: timePassed()
                case let id: endpoints[id]?.happened(event.events, self)
                }
            }
            return true
        }
    }
}
