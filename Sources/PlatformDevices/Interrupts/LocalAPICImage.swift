import Hypervisor

extension LocalAPICState {
    /// - Parameters:
    ///   - id: of this processor, whatever the image says.
    ///   - now: nanoseconds of CLOCK_MONOTONIC.
    init(_ image: LocalAPICImage, id: UInt32, now: UInt64, clock: TimeStampClock) {
        self.init(id: id)
        func register(_ offset: LocalAPICRegister) -> UInt32 {
            let index = Int(offset.rawValue >> 4)
            return index < image.registers.count ? image.registers[index] : 0
        }
        enabled = image.base & 1 << 11 != 0
        x2 = enabled && image.base & 1 << 10 != 0
        taskPriority = register(.taskPriority) & 0xFF
        logicalDestination = register(.logicalDestination)
        destinationFormat = register(.destinationFormat) | 0x0FFF_FFFF
        spuriousVector = register(.spuriousVector) & 0x1FF
        errorStatus = register(.errorStatus)
        interruptCommand = UInt64(register(.interruptCommandHigh)) << 32 | UInt64(register(.interruptCommandLow))
        lvtTimer = register(.lvtTimer) & 0x7_10FF
        lvtThermal = register(.lvtThermal) & 0x1_17FF
        lvtPerformance = register(.lvtPerformance) & 0x1_17FF
        lvtLINT0 = register(.lvtLINT0) & 0x1_F7FF
        lvtLINT1 = register(.lvtLINT1) & 0x1_F7FF
        lvtError = register(.lvtError) & 0x1_10FF
        initialCount = register(.initialCount)
        divide = register(.divideConfiguration) & 0xB
        for index in 0..<8 where 0x20 + index < image.registers.count {
            inService.setRegister(index, image.registers[0x10 + index])
            levelTriggered.setRegister(index, image.registers[0x18 + index])
            requested.setRegister(index, image.registers[0x20 + index])
        }
        if timerMode == 2 {
            tscDeadline = image.timeStampDeadline
            deadline = tscDeadline == 0 ? nil : clock.nanoseconds(when: tscDeadline)
        } else {
            timerStart = now
            deadline = image.timerRemaining.map { now &+ $0 }
        }
    }
}
