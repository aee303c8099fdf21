"""A car: engine, brakes, doors, climate, tires, and the way to somewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from agentgym.tools import tool
from agentgym_envs.bfcl.apis.base import Api, facts

_TANK = 50.0
_MILES_PER_GALLON = 20.0
_FULL_FORCE = 1000.0
_TIRES = ("frontLeftTirePressure", "frontRightTirePressure", "rearLeftTirePressure", "rearRightTirePressure")
_SHOWN = {
    "fuel": ("fuelLevel",),
    "battery": ("batteryVoltage",),
    "doors": ("doorStatus",),
    "climate": ("acTemperature", "fanSpeed", "acMode", "humidityLevel"),
    "headlights": ("headLightStatus",),
    "parkingBrake": ("parkingBrakeStatus", "parkingBrakeForce", "slopeAngle"),
    "brakePedal": ("brakePedalStatus", "brakePedalForce"),
    "engine": ("engineState",),
}
_NAMES = {"acTemperature": "currentACTemperature", "acMode": "climateMode", "headLightStatus": "headlightStatus"}
_Door = Literal["driver", "passenger", "rear_left", "rear_right"]


class VehicleControlAPI(Api):
    """The car's parts by name; forces in newtons, fuel in gallons, pressures in psi."""

    private = frozenset({"parkingBrakeForce", "slopeAngle", "brakePedalForce"})
    defaults: ClassVar[dict[str, Any]] = {
        "fuelLevel": 0.0, "batteryVoltage": 12.6, "engineState": "stopped", "remainingUnlockedDoors": 4,
        "doorStatus": {"driver": "unlocked", "passenger": "unlocked", "rear_left": "unlocked",
                       "rear_right": "unlocked"},
        "acTemperature": 25.0, "fanSpeed": 50, "acMode": "auto", "humidityLevel": 50.0, "headLightStatus": "off",
        "parkingBrakeStatus": "released", "parkingBrakeForce": 0.0, "slopeAngle": 0.0,
        "brakePedalStatus": "released", "brakePedalForce": 0.0, "distanceToNextVehicle": 50.0,
        "cruiseStatus": "inactive", "destination": "None", "frontLeftTirePressure": 32.0,
        "frontRightTirePressure": 32.0, "rearLeftTirePressure": 30.0, "rearRightTirePressure": 30.0,
    }  # fmt: skip

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self._count_doors()

    @tool
    def startEngine(self, ignitionMode: Literal["START", "STOP"]) -> Any:
        """Start or stop the engine; to start it, all doors must be locked and the brake pedal fully pressed."""
        if ignitionMode == "STOP":
            self.state["engineState"] = "stopped"
            return self._shown("engineState", "fuelLevel", "batteryVoltage")
        if self.state["remainingUnlockedDoors"]:
            unlocked = [name for name, status in self.state["doorStatus"].items() if status == "unlocked"]
            raise ValueError(f"all doors must be locked first; unlocked: {', '.join(unlocked)}")
        if self.state["brakePedalStatus"] != "pressed" or self.state["brakePedalForce"] != _FULL_FORCE:
            raise ValueError("the brake pedal must be fully pressed first")
        self.state["engineState"] = "running"
        return self._shown("engineState", "fuelLevel", "batteryVoltage")

    @tool
    def fillFuelTank(self, fuelAmount: float) -> Any:
        """Fill in so many gallons more; the tank holds 50."""
        if not (fuelAmount >= 0 and self.state["fuelLevel"] + fuelAmount <= _TANK):
            raise ValueError(f"wanted an amount from 0 on that leaves at most {_TANK:.0f} gallons in the tank")
        self.state["fuelLevel"] += fuelAmount
        return self._shown("fuelLevel")

    @tool
    def lockDoors(self, unlock: bool, door: list[_Door]) -> Any:
        """Lock doors, or unlock them with unlock=true."""
        status = "unlocked" if unlock else "locked"
        self.state["doorStatus"].update(dict.fromkeys(door, status))
        return {"lockStatus": status, "remainingUnlockedDoors": self._count_doors()}

    @tool
    def adjustClimateControl(
        self, temperature: float, unit: Literal["celsius", "fahrenheit"] = "celsius", fanSpeed: int = 50,
        mode: Literal["auto", "cool", "heat", "defrost"] = "auto",
    ) -> Any:  # fmt: skip
        """Set the temperature, the fan's speed from 0 to 100, and the mode."""
        if not 0 <= fanSpeed <= 100:
            raise ValueError(f"wanted a fan speed from 0 to 100, found {fanSpeed}")
        celsius = (temperature - 32) * 5 / 9 if unit == "fahrenheit" else temperature
        self.state |= {"acTemperature": celsius, "fanSpeed": fanSpeed, "acMode": mode}
        return {"currentTemperature": celsius, "climateMode": mode, "humidityLevel": self.state["humidityLevel"]}

    @tool
    def get_outside_temperature_from_google(self) -> Any:
        """Ask Google for the temperature outside, in degrees Celsius."""
        return {"outsideTemperature": self.random.uniform(-10.0, 40.0)}

    @tool
    def get_outside_temperature_from_weather_com(self) -> Any:
        """Ask weather.com for the temperature outside, in degrees Celsius."""
        raise ValueError("weather.com cannot be reached (404)")

    @tool
    def setHeadlights(self, mode: Literal["on", "off", "auto"]) -> Any:
        """Set the headlights; auto leaves them off by day, which it is."""
        self.state["headLightStatus"] = "on" if mode == "on" else "off"
        return {"headlightStatus": self.state["headLightStatus"]}

    @tool
    def displayCarStatus(
        self,
        option: Literal["fuel", "battery", "doors", "climate", "headlights", "parkingBrake", "brakePedal", "engine"],
    ) -> Any:
        """Show the status of one part of the car."""
        return {"status": self._shown(*_SHOWN[option])}

    @tool
    def activateParkingBrake(self, mode: Literal["engage", "release"]) -> Any:
        """Engage or release the parking brake."""
        engaged = mode == "engage"
        self.state |= {"parkingBrakeStatus": "engaged" if engaged else "released",
                       "parkingBrakeForce": 500.0 if engaged else 0.0, "slopeAngle": 10.0}  # fmt: skip
        return self._shown(*_SHOWN["parkingBrake"])

    @tool
    def pressBrakePedal(self, pedalPosition: float) -> Any:
        """Press the brake pedal, from 0 (not) to 1 (fully); it stays so until it is released."""
        if not 0 <= pedalPosition <= 1:
            raise ValueError(f"wanted a position from 0 to 1, found {pedalPosition}")
        return self._brake(pedalPosition)

    @tool
    def releaseBrakePedal(self) -> Any:
        """Release the brake pedal."""
        return self._brake(0.0)

    @tool
    def setCruiseControl(self, speed: float, activate: bool, distanceToNextVehicle: float) -> Any:
        """Set the cruise control while the engine runs: a speed from 0 to 120 in steps of 5, a distance in metres."""
        if self.state["engineState"] != "running":
            raise ValueError("the engine must run first")
        if activate and not (0 <= speed <= 120 and speed % 5 == 0):
            raise ValueError(f"wanted a speed from 0 to 120 in steps of 5, found {speed}")
        self.state |= {"cruiseStatus": "active" if activate else "inactive",
                       "distanceToNextVehicle": distanceToNextVehicle}  # fmt: skip
        return {**self._shown("cruiseStatus"), "currentSpeed": speed, "distanceToNextVehicle": distanceToNextVehicle}

    @tool
    def get_current_speed(self) -> Any:
        """Tell the speed in km/h."""
        return {"currentSpeed": self.random.uniform(0.0, 120.0)}

    @tool
    def display_log(self, messages: list[str]) -> Any:
        """Show messages on the display."""
        return {"log": messages}

    @tool
    def estimate_drive_feasibility_by_mileage(self, distance: float) -> Any:
        """Tell whether the fuel is enough for a distance in miles."""
        return {"canDrive": self.state["fuelLevel"] * _MILES_PER_GALLON >= distance}

    @tool
    def liter_to_gallon(self, liter: float) -> Any:
        """Convert litres to gallons."""
        return {"gallon": liter * 0.264172}

    @tool
    def gallon_to_liter(self, gallon: float) -> Any:
        """Convert gallons to litres."""
        return {"liter": gallon * 3.78541}

    @tool
    def estimate_distance(self, cityA: str, cityB: str) -> Any:
        """Tell the distance in km between two cities, by their zip codes."""
        found = next((km for one, other, km in facts()["distances"] if {one, other} == {cityA, cityB}), None)
        if found is None:
            raise ValueError("this distance is not known; wanted two zip codes")
        return {"distance": found}

    @tool
    def get_zipcode_based_on_city(self, city: str) -> Any:
        """Find a city's zip code; 00000 if it is not known."""
        return {"zipcode": facts()["zip_codes"].get(city, "00000")}

    @tool
    def set_navigation(self, destination: str) -> Any:
        """Navigate to a destination, as street, city, state."""
        self.state["destination"] = destination
        return {"status": f"Navigating to {destination}"}

    @tool
    def check_tire_pressure(self) -> Any:
        """Show the pressure of all tires, and whether it is healthy on average, from 30 to 35."""
        pressures = self._shown(*_TIRES)
        healthy = 30 <= sum(pressures.values()) / len(pressures) <= 35
        return {"tirePressure": {**pressures, "healthy_tire_pressure": healthy, "car_info": {}}}

    @tool
    def find_nearest_tire_shop(self) -> Any:
        """Find the nearest tire shop."""
        return {"shopLocation": facts()["tire_shop"]}

    def _shown(self, *names: str) -> dict[str, Any]:
        return {_NAMES.get(name, name): self.state[name] for name in names}

    def _brake(self, position: float) -> Any:
        pressed = position > 0
        self.state |= {"brakePedalStatus": "pressed" if pressed else "released",
                       "brakePedalForce": position * _FULL_FORCE}  # fmt: skip
        return self._shown(*_SHOWN["brakePedal"])

    def _count_doors(self) -> int:
        count: int = sum(status != "locked" for status in self.state["doorStatus"].values())
        self.state["remainingUnlockedDoors"] = count
        return count
