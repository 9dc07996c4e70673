"""Descriptions of the fake camera's features with more of them, as other cameras have: registers nobody else uses."""

from pathlib import Path

from connectors.cameras.aravis_nodes import aravis_library

TRIGGERS = """
<Enumeration Name="LineSelector"><EnumEntry Name="Line1"><Value>1</Value></EnumEntry>
<EnumEntry Name="Line2"><Value>2</Value></EnumEntry><pValue>R3000</pValue></Enumeration>
<Float Name="LineDebouncerTimeAbs"><pValue>R3010</pValue><Min>0</Min><Max>500</Max></Float>
<Float Name="TriggerDelayAbs"><pValue>R3020</pValue><Min>0</Min><Max>1000000</Max></Float>
"""
HEARTBEAT = '<Integer Name="GevHeartbeatTimeout"><pValue>R0938</pValue><Min>500</Min><Max>60000</Max></Integer>'
CLOCK = """
<Command Name="GevTimestampControlLatch"><pValue>R0944</pValue><CommandValue>2</CommandValue></Command>
<Integer Name="GevTimestampTickFrequency"><Value>1000000000</Value></Integer>
<IntReg Name="GevTimestampValue"><Address>0x948</Address><Length>8</Length><AccessMode>RO</AccessMode><pPort>Device</pPort>
<Cachable>NoCache</Cachable><Sign>Unsigned</Sign><Endianess>BigEndian</Endianess></IntReg>
"""
READINESS = """
<Enumeration Name="AcquisitionStatusSelector"><EnumEntry Name="FrameTriggerWait"><Value>3</Value></EnumEntry>
<pValue>R3050</pValue></Enumeration>
<Boolean Name="AcquisitionStatus"><pValue>R3060</pValue><OnValue>1</OnValue><OffValue>0</OffValue></Boolean>
"""
"""A camera that never waits for a trigger, until its register R3060 is set."""
PTP = """
<Boolean Name="GevIEEE1588"><pValue>R3030</pValue><OnValue>1</OnValue><OffValue>0</OffValue></Boolean>
<Command Name="GevIEEE1588DataSetLatch"><pValue>R3040</pValue><CommandValue>1</CommandValue></Command>
<Enumeration Name="GevIEEE1588StatusLatched"><EnumEntry Name="Listening"><Value>0</Value></EnumEntry>
<EnumEntry Name="Slave"><Value>1</Value></EnumEntry><pValue>R3030</pValue></Enumeration>
"""
"""Its status is what PTP is set to: a camera that finds its master at once."""


def write_description(folder: Path, *features: str) -> Path:
    """The fake camera's own XML with these features; LineN trigger sources among them."""
    aravis, _ = aravis_library()
    xml, size = aravis.FakeCamera.new("x").get_genicam_xml()
    text = xml[:size]
    more = "".join(features)
    more += '<Integer Name="Ready"><pValue>R3060</pValue></Integer>' if READINESS in features else ""
    for address in ("0938", "0944", "3000", "3010", "3020", "3030", "3040", "3050", "3060"):
        more += (
            f'<IntReg Name="R{address}"><Address>0x{address}</Address><Length>4</Length><AccessMode>RW</AccessMode>'
            "<pPort>Device</pPort><Cachable>NoCache</Cachable><Sign>Unsigned</Sign><Endianess>BigEndian</Endianess></IntReg>"
        )
    source = '<EnumEntry Name="Line1"><Value>7</Value></EnumEntry>'
    start = text.index('<Enumeration Name="TriggerSource"')
    at = text.index("<EnumEntry", start)
    text = text[:at] + source + text[at:]
    end = text.rindex("</RegisterDescription>")
    file = folder / "camera.xml"
    file.write_text(text[:end] + more + text[end:])
    return file
